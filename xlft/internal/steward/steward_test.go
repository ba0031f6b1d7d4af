package steward

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// A host is a fake: its protectors are a set of names.
type host struct {
	mu      sync.Mutex
	domains []Domain
	busy    map[string]bool
	stopped map[string]bool          // by Instance
	until   map[string]time.Time     // the same
	takes   map[string]bool          // backups that take domains
	copying map[string]time.Duration // how long a first copy takes
	tried   []string
	during  func() // called in each try
	err     error
}

func (h *host) Domains() ([]Domain, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.domains), h.err
}

func (h *host) Busy(_ context.Context, d string) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.busy[d], nil
}

func (h *host) Stopped(d Domain) (bool, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	until := h.until[d.Instance]
	return h.stopped[d.Instance] && (until.IsZero() || time.Now().Before(until)), until
}

func (h *host) Why(string) string { return "it never had one" }

func (h *host) Try(_ context.Context, d, backup string) error {
	h.mu.Lock()
	h.tried = append(h.tried, d+" to "+backup)
	takes, during := h.takes[backup], h.during
	h.mu.Unlock()
	if during != nil {
		during()
	}
	if !takes {
		return errors.New(backup + " can't be reached")
	}
	h.set(d, true)
	time.Sleep(h.copying[d])
	return nil
}

func (h *host) set(d string, busy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busy[d] = busy
}

func (h *host) took() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.tried
	h.tried = nil
	return was
}

// with runs f beside a Steward of one domain, web, with two backups.
func with(t *testing.T, f func(h *host, s *Steward)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: []Domain{{"web", "1"}}, busy: map[string]bool{}, stopped: map[string]bool{}, takes: map[string]bool{"b": true, "c": true}, copying: map[string]time.Duration{}}
		s := &Steward{Host: h, Log: zap.NewNop(), Plan: func(d string) Plan { return Plan{Protect: d != "other", Backups: []string{"b", "c"}} }}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		f(h, s)
	})
}

func expect(t *testing.T, h *host, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := h.took(); !slices.Equal(got, want) {
		t.Errorf("tried %q, want %q", got, want)
	}
}

func TestProtects(t *testing.T) {
	with(t, func(h *host, s *Steward) {
		h.mu.Lock()
		h.domains = append(h.domains, Domain{"other", "2"})
		h.mu.Unlock()
		time.Sleep(10 * time.Second)
		expect(t, h, "web to b")
		if u := s.Unprotected(); len(u) != 0 {
			t.Errorf("unprotected: %+v", u)
		}
		// A protector that comes back by itself is left alone.
		h.set("web", false)
		time.Sleep(1500 * time.Millisecond)
		h.set("web", true)
		time.Sleep(10 * time.Second)
		expect(t, h)
		// One that does not is started again, and it is known since when there was none.
		h.set("web", false)
		begun := time.Now()
		time.Sleep(2100 * time.Millisecond)
		if u := s.Unprotected(); len(u) != 0 {
			t.Errorf("at once: %+v", u)
		}
		h.mu.Lock()
		h.takes["b"], h.copying["web"] = false, 5*time.Second
		h.mu.Unlock()
		time.Sleep(1500 * time.Millisecond)
		u := s.Unprotected()
		if len(u) != 1 || u[0].Domain != "web" || u[0].Trying != "c" || u[0].Since.Sub(begun) > Every || u[0].Why != "it never had one" {
			t.Errorf("while it is copied: %+v", u)
		}
		time.Sleep(10 * time.Second)
		expect(t, h, "web to b", "web to c")
	})
}

// Where no backup takes it, it is tried again, less and less often.
func TestNoBackup(t *testing.T) {
	with(t, func(h *host, s *Steward) {
		h.mu.Lock()
		h.takes["b"], h.takes["c"] = false, false
		h.mu.Unlock()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		n := len(h.took())
		if n < 10 || n > 22 {
			t.Errorf("%d tries in five minutes", n)
		}
		u := s.Unprotected()
		if len(u) != 1 || u[0].Why != "b can't be reached\nc can't be reached" || time.Until(u[0].Next) <= 0 || time.Until(u[0].Next) > longestRest {
			t.Errorf("%+v", u)
		}
		h.mu.Lock()
		h.takes["c"] = true
		h.mu.Unlock()
		time.Sleep(longestRest + Every)
		expect(t, h, "web to b", "web to c")
	})
}

// What an operator stopped stays so as long as the domain runs.
func TestStopped(t *testing.T) {
	with(t, func(h *host, s *Steward) {
		h.mu.Lock()
		h.stopped["1"] = true
		h.mu.Unlock()
		time.Sleep(time.Hour)
		expect(t, h)
		if u := s.Unprotected(); len(u) != 1 || !u[0].Stopped || !u[0].Next.IsZero() {
			t.Errorf("%+v", u)
		}
		h.mu.Lock()
		h.domains[0].Instance = "2" // it was started again
		h.mu.Unlock()
		time.Sleep(5 * time.Second)
		expect(t, h, "web to b")
	})
}

// What an operator stopped for a time is protected again when the time is over, and says so
// meanwhile.
func TestStoppedForATime(t *testing.T) {
	with(t, func(h *host, s *Steward) {
		until := time.Now().Add(30 * time.Minute)
		h.mu.Lock()
		h.stopped["1"], h.until = true, map[string]time.Time{"1": until}
		h.mu.Unlock()
		time.Sleep(30*time.Minute - time.Second)
		expect(t, h)
		if u := s.Unprotected(); len(u) != 1 || !u[0].Stopped || !u[0].Until.Equal(until) {
			t.Errorf("%+v", u)
		}
		time.Sleep(3 * time.Second)
		expect(t, h, "web to b")
	})
}

// What an operator stops while one backup is tried is not given to the next.
func TestStoppedWhileTried(t *testing.T) {
	with(t, func(h *host, s *Steward) {
		h.mu.Lock()
		h.takes["b"] = false
		h.during = func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.stopped["1"] = true
		}
		h.mu.Unlock()
		time.Sleep(time.Minute)
		expect(t, h, "web to b")
		if u := s.Unprotected(); len(u) != 1 || !u[0].Stopped {
			t.Errorf("%+v", u)
		}
	})
}

// A look that fails changes nothing.
func TestBlind(t *testing.T) {
	with(t, func(h *host, s *Steward) {
		time.Sleep(10 * time.Second)
		expect(t, h, "web to b")
		h.mu.Lock()
		h.err = errors.New("no memory")
		h.busy["web"] = false
		h.mu.Unlock()
		time.Sleep(time.Minute)
		expect(t, h)
		h.mu.Lock()
		h.err, h.takes = nil, map[string]bool{}
		h.mu.Unlock()
		time.Sleep(4 * time.Second)
		expect(t, h, "web to b", "web to c")
		since := s.Unprotected()[0].Since
		h.mu.Lock()
		h.err = errors.New("no memory")
		h.mu.Unlock()
		time.Sleep(3 * time.Second)
		if u := s.Unprotected(); len(u) != 1 || !u[0].Since.Equal(since) {
			t.Errorf("it is unprotected since %v: %+v", since, u)
		}
	})
}

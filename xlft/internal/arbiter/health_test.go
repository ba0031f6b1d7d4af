package arbiter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// checks is an arbiter that says what it is told to.
type checks struct {
	asked atomic.Int64
	hang  atomic.Bool
	mu    sync.Mutex
	err   error
}

func (c *checks) Check(ctx context.Context, peer string) error {
	c.asked.Add(1)
	if c.hang.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *checks) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// However many processes watch an arbiter, it is asked once in each interval, and each of
// them knows what it said.
func TestHealthIsShared(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := new(checks)
		var all []*Health
		var wg sync.WaitGroup
		for range 20 {
			h := &Health{Arbiter: c, Peer: "beta", Dir: dir, Every: time.Minute, Log: zap.NewNop()}
			all = append(all, h)
			wg.Go(func() { h.Run(ctx) })
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := c.asked.Load(); n < 50 || n > 62 {
			t.Errorf("asked %d times in an hour", n)
		}
		c.fail(errors.New("no route to host"))
		time.Sleep(90 * time.Second)
		for i, h := range all {
			if v := h.Now(); v.Error != "no route to host" || time.Since(v.At) > 2*time.Minute {
				t.Errorf("process %d knows %+v", i, v)
			}
		}
		c.fail(nil)
		time.Sleep(90 * time.Second)
		for i, h := range all {
			if v := h.Now(); v.Error != "" {
				t.Errorf("process %d knows %+v", i, v)
			}
		}
		cancel()
		wg.Wait()
	})
}

// An agent that hangs is waited for within bounds, and keeps nobody else waiting.
func TestHealthHangs(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := new(checks)
		c.hang.Store(true)
		one := &Health{Arbiter: c, Peer: "beta", Dir: dir, Every: time.Minute, Log: zap.NewNop()}
		other := &Health{Arbiter: c, Peer: "beta", Dir: dir, Every: time.Minute, Log: zap.NewNop()}
		var wg sync.WaitGroup
		wg.Go(func() { one.Run(ctx) })
		time.Sleep(time.Second)
		begun := time.Now()
		if other.look(ctx); time.Since(begun) > 0 {
			t.Errorf("the other process waited %v", time.Since(begun))
		}
		time.Sleep(checkLimit)
		synctest.Wait()
		if v := one.Now(); v.Error == "" {
			t.Errorf("%+v of an agent that hangs", v)
		}
		cancel()
		wg.Wait()
	})
}

// What the other host's arbiter can't do counts too, and lasts until that host says
// otherwise; an answer of the future is of before the clock was set.
func TestHealthOfBackup(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "arbiter-beta.health"), []byte(`{"at":"2100-01-01T00:00:00Z","error":"old"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		said, failed := "fence agent of alpha: bad password", error(nil)
		h := &Health{Arbiter: new(checks), Peer: "beta", Dir: dir, Every: time.Minute, Log: zap.NewNop(),
			Backup: func(context.Context) (string, error) { return said, failed }}
		for _, c := range []struct {
			said string
			err  error
			want string
		}{
			{said, nil, "beta: " + said},
			{"", errors.New("connection refused"), "beta: " + said},
			{"", nil, ""},
		} {
			said, failed = c.said, c.err
			h.look(t.Context())
			if v := h.Now(); v.Error != c.want || v.At.Year() == 2100 {
				t.Errorf("after %q, %v: %+v, want %q", c.said, c.err, v, c.want)
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

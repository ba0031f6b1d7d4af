package protector

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/life"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
)

// A fated host has a domain with an end.
type fated struct {
	life.Host
	mu      sync.Mutex
	domains []xen.Domain
	st      xlft.GuestState
	reason  string
	gone    bool
}

func (f *fated) Domains() ([]xen.Domain, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.domains, nil
}

// becomes changes the host while a protector looks at it.
func (f *fated) becomes(gone bool, domains ...xen.Domain) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone, f.domains = gone, domains
}

func (f *fated) End(uint32) (xlft.GuestState, bool, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st, f.gone, f.reason, nil
}

// A protector waits for a domain that is to be started again, and for no other.
func TestRestarted(t *testing.T) {
	old := xen.Domain{ID: 3, Name: "web1", UUID: "u"}
	next := xen.Domain{ID: 4, Name: "web1", UUID: "u"}
	over := func(reason string) *fated {
		return &fated{domains: []xen.Domain{old}, st: xlft.GuestOver, reason: reason}
	}
	for _, c := range []struct {
		name string
		h    *fated
		then func(h *fated, restart string) // in time
		want bool
		most time.Duration
	}{
		{"it stays off", over("power-off"), nil, false, time.Second},
		{"it crashed, and is preserved", over("crash"), nil, false, time.Second},
		{"it is started again", over("reboot"), func(h *fated, restart string) {
			time.Sleep(3 * time.Second)
			h.becomes(true)
			os.WriteFile(restart, nil, 0o600)
			time.Sleep(10 * time.Minute) // memory is short
			h.becomes(true, next)
			time.Sleep(10 * time.Second) // its devices
			os.Remove(restart)
		}, true, 2 * time.Hour},
		{"somebody else starts it again", &fated{gone: true}, func(h *fated, _ string) {
			time.Sleep(10 * time.Second)
			h.becomes(true, next)
		}, true, time.Minute},
		{"an operator destroyed it", &fated{gone: true}, nil, false, time.Minute},
		{"another domain of that name comes", &fated{gone: true, domains: []xen.Domain{{ID: 9, Name: "web1", UUID: "x"}}}, nil, false, time.Minute},
		{"its replica is held here", &fated{gone: true, domains: []xen.Domain{{ID: 9, Name: "web1--xlft", UUID: "u"}}}, nil, false, time.Minute},
		{"a soft reset", &fated{domains: []xen.Domain{old}, st: xlft.GuestRuns}, nil, true, time.Second},
		{"its keeper died for good", &fated{gone: true}, func(_ *fated, restart string) { os.WriteFile(restart, nil, 0o600) }, false, 2 * time.Hour},
		{"nobody starts it again", over("reboot"), nil, false, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				run := t.TempDir()
				p := &Protector{Config: &config.Config{RunDir: run}, Domain: "web1", run: &protected{Domain: old, Config: &domconf.Config{OnReboot: "restart", OnCrash: "preserve"}, again: true, Proven: true}}
				if c.then != nil {
					go c.then(c.h, RestartFile(run, "web1"))
				}
				begun, beats := time.Now(), 0
				got := p.restarted(t.Context(), c.h, func() { beats++ })
				took := time.Since(begun)
				if got != c.want || took > c.most || p.Proven != c.want {
					t.Errorf("%v after %v, proven %v", got, took, p.Proven)
				}
				if beats < int(took/time.Second) {
					t.Errorf("%d signs of life in %v", beats, took)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		p := &Protector{Config: &config.Config{RunDir: t.TempDir()}, Domain: "web1", run: &protected{Domain: old, Config: &domconf.Config{OnReboot: "restart"}}}
		if begun := time.Now(); p.restarted(ctx, over("reboot"), func() {}) || time.Since(begun) > 6*time.Second {
			t.Error("it did not stop when it was told to")
		}
	})
}

// A hypervisor that can't be opened when the wait begins may be later: the wait goes
// on, and ends if it never can.
func TestRestartedOpens(t *testing.T) {
	old := xen.Domain{ID: 3, Name: "web1", UUID: "u"}
	next := xen.Domain{ID: 4, Name: "web1", UUID: "u"}
	for _, c := range []struct {
		name  string
		fails int
		want  bool
	}{{"once", 1, true}, {"for a minute", 120, true}, {"for good", 1 << 30, false}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries, ended := 0, 0
				h := &opening{open: func() (looker, func(), error) {
					if tries++; tries <= c.fails {
						return nil, nil, errors.New("no more descriptors")
					}
					return &fated{gone: true, domains: []xen.Domain{next}}, func() { ended++ }, nil
				}}
				p := &Protector{Config: &config.Config{RunDir: t.TempDir()}, Domain: "web1", run: &protected{Domain: old, Config: &domconf.Config{OnReboot: "restart"}, again: true, Proven: true}}
				begun := time.Now()
				if got := p.restarted(t.Context(), h, func() {}); got != c.want || time.Since(begun) > rebirthMost+time.Second {
					t.Errorf("%v after %v", got, time.Since(begun))
				}
				h.end()
				if c.want && (tries != c.fails+1 || ended != 1) {
					t.Errorf("opened %d times, closed %d times", tries, ended)
				}
			})
		})
	}
}

// Again itself does not end at once where there is no hypervisor.
func TestAgainOpens(t *testing.T) {
	if h, err := xen.Open(); err == nil {
		h.Close()
		t.Skip("there is a hypervisor")
	}
	synctest.Test(t, func(t *testing.T) {
		p := &Protector{Config: &config.Config{RunDir: t.TempDir()}, Domain: "web1", Log: zap.NewNop(), run: &protected{Config: &domconf.Config{}, again: true}}
		begun := time.Now()
		p.Again(t.Context(), func() {})
		if took := time.Since(begun); took < rebirthMost {
			t.Errorf("it gave up after %v", took)
		}
	})
}

// A protector that dies while it waits is followed by one that waits.
func TestWaited(t *testing.T) {
	c := &config.Config{RunDir: t.TempDir()}
	p := &Protector{Config: c, Domain: "web1"}
	if p.Waited() {
		t.Error("nobody waited")
	}
	b := []byte(`{"Domain":{"ID":3,"Name":"web1","UUID":"u"},"Config":{"c_info":{"type":"pvh"},"on_reboot":"restart"},"Proven":true}`)
	for _, content := range [][]byte{nil, []byte("{}"), b[:40]} {
		if err := os.WriteFile(waitFile(c.RunDir, "web1"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if p.Waited() {
			t.Errorf("waits after %q", content)
		}
	}
	if err := os.WriteFile(waitFile(c.RunDir, "web1"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if !p.Waited() || !p.run.again || !p.run.Proven || p.run.Domain.ID != 3 || !p.run.Config.Action("reboot").Again() {
		t.Errorf("%+v", p.run)
	}
	if now, err := json.Marshal(p.run); err != nil || !strings.Contains(string(now), `"on_reboot":"restart"`) {
		t.Errorf("%s, %v", now, err)
	}
	DontWait(c.RunDir, "web1")
	if p.Waited() {
		t.Error("waits after an operator's end")
	}
}

// Nobody acts on the end of a domain while another host may run it.
func TestOwned(t *testing.T) {
	c := &config.Config{RunDir: t.TempDir(), StateDir: t.TempDir()}
	this := BootID() + "/3"
	for _, x := range []struct {
		name string
		o    xlft.Ownership
		want string
	}{
		{"never protected", xlft.Ownership{}, ""},
		{"protection ended", xlft.Ownership{Role: xlft.HostPrimary, Peer: "B", Instance: this}, ""},
		{"protector died", xlft.Ownership{Role: xlft.HostPrimary, Peer: "B", Instance: this, Exposed: true}, "B may run the domain"},
		{"given up", xlft.Ownership{Role: xlft.HostYielded, Peer: "B", Instance: this}, "the other host has"},
		{"given up before this boot", xlft.Ownership{Role: xlft.HostYielded, Peer: "B", Instance: "x/3"}, "the other host has"},
		{"a replica is here", xlft.Ownership{Role: xlft.HostBackup, Peer: "B"}, "the other host has"},
		{"a takeover failed", xlft.Ownership{Role: xlft.HostFailed, Peer: "B"}, "the other host has"},
		{"taken over", xlft.Ownership{Role: xlft.HostOwner, Peer: "A"}, ""},
		{"taken over, not yet recorded", xlft.Ownership{Role: xlft.HostOwner, Peer: "A", Pending: true}, "has not recorded"},
	} {
		if err := store.Dir(c.StateDir).Save("web1", x.o); err != nil {
			t.Fatal(err)
		}
		release, err := Owned(c, "web1")
		if x.want == "" {
			if err != nil {
				t.Errorf("%s: %v", x.name, err)
				continue
			}
			if _, err := lock(c.RunDir, "web1"); err == nil {
				t.Errorf("%s: a protector could begin meanwhile", x.name)
			}
			release()
		} else if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", x.name, err)
		}
		l, err := lock(c.RunDir, "web1")
		if err != nil {
			t.Fatalf("%s: the lock is still held: %v", x.name, err)
		}
		if _, err := Owned(c, "web1"); err == nil || !strings.Contains(err.Error(), "protector has not ended") {
			t.Errorf("%s, and its protector lives: %v", x.name, err)
		}
		l.Close()
	}
}

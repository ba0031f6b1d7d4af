package life_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/internal/life"
	"xlft/xlft/internal/xen"
)

// A host stands for Xen and libxl: domains with an end, and a list of what was done.
type host struct {
	mu      sync.Mutex // the test changes the world while a keeper looks at it
	domains map[uint32]*domain
	next    uint32
	did     []string
	fails   map[string]int // how often a call still fails
}

type domain struct {
	xen.Domain
	st     xlft.GuestState
	reason string
	words  string // of its configuration

	unfinished bool
}

// change changes the world.
func (h *host) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *host) do(what string, id uint32) error {
	if h.fails[what] > 0 {
		h.fails[what]--
		return errors.New(what + " failed")
	}
	h.did = append(h.did, fmt.Sprintf("%s %d", what, id))
	return nil
}

func (h *host) add(name, uuid, words string) *domain {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.put(name, uuid, words)
}

func (h *host) put(name, uuid, words string) *domain {
	h.next++
	d := &domain{Domain: xen.Domain{ID: h.next, Name: name, UUID: uuid}, words: words}
	h.domains[h.next] = d
	return d
}

func (h *host) Domains() (all []xen.Domain, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.domains {
		all = append(all, d.Domain)
	}
	return all, nil
}

func (h *host) End(id uint32) (xlft.GuestState, bool, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.domains[id]
	if d == nil {
		return xlft.GuestOver, true, "", nil
	}
	return d.st, false, d.reason, nil
}

func (h *host) Config(id uint32) (json.RawMessage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.domains[id]
	return json.RawMessage(fmt.Sprintf(`{"c_info":{"type":"pvh","name":%q,"uuid":%q}%s}`, d.Name, d.UUID, d.words)), h.do("config", id)
}

func (h *host) Destroy(id uint32) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.do("destroy", id); err != nil {
		return err
	}
	delete(h.domains, id)
	return nil
}

func (h *host) Create(config json.RawMessage) (uint32, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.do("create", h.next+1); err != nil {
		return 0, err
	}
	var c struct {
		Create struct{ Name, UUID string } `json:"c_info"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return 0, err
	}
	return h.put(c.Create.Name, c.Create.UUID, "").ID, nil
}

func (h *host) CoreDump(id uint32, file string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.do("dump to "+filepath.Base(file), id)
}

func (h *host) Unfinished(id uint32) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.domains[id].unfinished, nil
}

func (h *host) SoftReset(id uint32, _ json.RawMessage) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.do("soft reset", id)
	if err == nil {
		h.domains[id].st = xlft.GuestRuns
	}
	return err
}

// keep runs a keeper of "web1" until it ends, or for a while.
func keep(t *testing.T, h *host, change func(*life.Keeper)) (ended bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	k := &life.Keeper{
		Host: h, Domain: "web1", Restarting: filepath.Join(t.TempDir(), "restart"), DumpDir: t.TempDir(), Log: zap.NewNop(),
		Decide: func() (func(), error) { return func() {}, nil },
	}
	if change != nil {
		change(k)
	}
	if err := k.Run(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(k.Restarting); err == nil {
		t.Error("the configuration of a restart is still there")
	}
	return ctx.Err() == nil
}

func end(d *domain, reason string) { d.st, d.reason = xlft.GuestOver, reason }

// Each word of xl.cfg(5) does what xl does.
func TestWords(t *testing.T) {
	for _, c := range []struct {
		words, reason string
		want          string // what is done with domain 1
		ends          bool   // and then nothing is to be kept
	}{
		{`,"on_poweroff":"destroy"`, "power-off", "destroy 1", true},
		{``, "power-off", "destroy 1", true},
		{`,"on_poweroff":"restart"`, "power-off", "destroy 1, create 2", false},
		{`,"on_reboot":"restart"`, "reboot", "destroy 1, create 2", false},
		{`,"on_reboot":"restart","on_crash":"preserve"`, "crash", "", true},
		{`,"on_crash":"restart_rename"`, "crash", "dump to web1 1, destroy 1, create 2", false},
		{`,"on_crash":"coredump_destroy"`, "crash", "dump to web1 1, destroy 1", true},
		{`,"on_crash":"coredump_restart"`, "crash", "dump to web1 1, destroy 1, create 2", false},
		{`,"on_watchdog":"restart"`, "watchdog", "destroy 1, create 2", false},
		{`,"on_soft_reset":"soft_reset"`, "soft reset", "soft reset 1", false},
		{`,"on_soft_reset":"restart"`, "soft reset", "destroy 1, create 2", false},
		{`,"on_reboot":"restart"`, "shutdown reason 9", "destroy 1", true},
	} {
		t.Run(c.reason+c.words, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &host{domains: map[uint32]*domain{}}
				end(h.add("web1", "u", c.words), c.reason)
				if ended := keep(t, h, nil); ended != c.ends {
					t.Errorf("ended %v, want %v", ended, c.ends)
				}
				did := slices.DeleteFunc(h.did, func(s string) bool { return strings.HasPrefix(s, "config") })
				if got := strings.Join(did, ", "); got != c.want {
					t.Errorf("%s, want %s", got, c.want)
				}
			})
		})
	}
}

// A domain whose owner is not decided is left alone, however long that takes, and
// the decision is asked for again right before the act.
func TestUndecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		begun := time.Now()
		keep(t, h, func(k *life.Keeper) {
			k.Decide = func() (func(), error) {
				held := h.domains[1] != nil
				if time.Since(begun) < 30*time.Second {
					if !held {
						t.Error("it was destroyed before that was decided")
					}
					return nil, errors.New("its protector has died")
				}
				return func() {}, nil
			}
		})
		if h.domains[1] != nil || h.domains[2] == nil {
			t.Errorf("decided at last, and it was not started again: %v", h.did)
		}
	})
}

// Whoever else acts on the end, such as libvirt, is followed.
func TestSomebodyElseRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		go func() {
			time.Sleep(1500 * time.Millisecond)
			h.change(func() { delete(h.domains, 1) })
			time.Sleep(5 * time.Second)
			h.add("web1", "u", `,"on_poweroff":"destroy"`)
			time.Sleep(5 * time.Second)
			h.change(func() { end(h.domains[2], "power-off") })
		}()
		if !keep(t, h, nil) {
			t.Error("it did not end")
		}
		if got := strings.Join(h.did, ", "); got != "config 2, destroy 2" {
			t.Error(got)
		}
	})
}

// A domain that an operator destroys stays so; one of another UUID is another one.
func TestDestroyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		h.add("web1", "u", `,"on_reboot":"restart"`)
		go func() {
			time.Sleep(10 * time.Second)
			h.change(func() { delete(h.domains, 1) })
			h.add("web1", "other", "")
		}()
		if !keep(t, h, nil) || len(h.did) > 0 {
			t.Errorf("%v", h.did)
		}
	})
}

// What fails is tried again: the memory of the old domain, say, is not free yet.
func TestTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}, fails: map[string]int{"destroy": 2, "create": 3, "config": 1}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		keep(t, h, nil)
		if h.domains[2] == nil {
			t.Errorf("%v", h.did)
		}
	})
}

// A keeper that dies between the end of the old domain and the start of the new one
// leaves its successor what it needs.
func TestSuccessor(t *testing.T) {
	const config = `{"c_info":{"type":"pvh","name":"web1","uuid":"u"}}`
	for _, there := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := &host{domains: map[uint32]*domain{}}
			if there {
				h.add("web1", "u", "")
			}
			keep(t, h, func(k *life.Keeper) {
				if err := os.WriteFile(k.Restarting, []byte(config), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			want := []string{"create 1"}
			if there {
				want = nil
			}
			if !slices.Equal(h.did, want) {
				t.Errorf("there %v: %v", there, h.did)
			}
		})
	}
	// It dies in the middle of a create that hangs.
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}, fails: map[string]int{"create": 1000}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		file := filepath.Join(t.TempDir(), "restart")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		k := &life.Keeper{Host: h, Domain: "web1", Restarting: file, Log: zap.NewNop(), Decide: func() (func(), error) { return func() {}, nil }}
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(file); err != nil || h.domains[1] != nil {
			t.Errorf("the domain is gone, and its configuration too: %v", err)
		}
	})
}

// A keeper that finds a configuration left asks who owns the domain, too, and drops
// it if the other host has the domain.
func TestResumeUndecided(t *testing.T) {
	for _, why := range []error{errors.New("not recorded yet"), fmt.Errorf("web1: %w", life.ErrElsewhere)} {
		synctest.Test(t, func(t *testing.T) {
			h := &host{domains: map[uint32]*domain{}}
			begun := time.Now()
			ended := keep(t, h, func(k *life.Keeper) {
				os.WriteFile(k.Restarting, []byte(`{"c_info":{"type":"pvh","name":"web1","uuid":"u"}}`), 0o600)
				k.Decide = func() (func(), error) {
					if time.Since(begun) < time.Minute {
						return nil, why
					}
					return func() {}, nil
				}
			})
			elsewhere := errors.Is(why, life.ErrElsewhere)
			if ended != elsewhere || (len(h.did) == 0) != elsewhere {
				t.Errorf("%v: ended %v, %v", why, ended, h.did)
			}
		})
	}
}

// A replica that this host holds meanwhile is not the domain.
func TestReplicaIsNotIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}, fails: map[string]int{"create": 3}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		go func() {
			time.Sleep(5 * time.Second)
			h.add("web1--xlft", "u", "")
		}()
		keep(t, h, nil)
		if h.domains[3] == nil {
			t.Errorf("the replica is taken for the domain: %v", h.did)
		}
	})
}

// xl create shows its domain seconds before its process can be told.
func TestAloneAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		h.add("web1", "u", `,"on_reboot":"restart"`)
		xl := false
		go func() {
			time.Sleep(5500 * time.Millisecond)
			h.change(func() { delete(h.domains, 1) }) // xl destroy; xl create
			time.Sleep(time.Second)
			h.add("web1", "u", `,"on_reboot":"restart"`)
			time.Sleep(2 * time.Second)
			h.change(func() { xl = true })
		}()
		keep(t, h, func(k *life.Keeper) {
			k.Alone = func(domid uint32) { h.change(func() { xl = xl && domid != 2 }) }
		})
		if xl {
			t.Error("xl's process lives beside the keeper for two minutes")
		}
	})
}

// A keeper that was killed while it built the domain left one that will never run.
// One that somebody else is building has its time.
func TestHalfBuilt(t *testing.T) {
	for _, built := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := &host{domains: map[uint32]*domain{}}
			d := h.add("web1", "u", "")
			d.unfinished = true
			if built {
				go func() { time.Sleep(15 * time.Second); h.change(func() { d.unfinished = false }) }()
			}
			keep(t, h, func(k *life.Keeper) {
				os.WriteFile(k.Restarting, []byte(`{"c_info":{"type":"pvh","name":"web1","uuid":"u"}}`), 0o600)
			})
			want := []string{"destroy 1", "create 2"}
			if built {
				want = nil
			}
			if !slices.Equal(h.did, want) {
				t.Errorf("built %v: %v", built, h.did)
			}
		})
	}
}

// What fails after the dump does not have the memory dumped again.
func TestOneDump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}, fails: map[string]int{"destroy": 10}}
		end(h.add("web1", "u", `,"on_crash":"coredump_restart"`), "crash")
		keep(t, h, nil)
		n := 0
		for _, s := range h.did {
			if strings.HasPrefix(s, "dump") {
				n++
			}
		}
		if n != 1 || h.domains[2] == nil {
			t.Errorf("%d core dumps: %v", n, h.did)
		}
	})
}

// libxl resets HVM domains only, and soft_reset is xl's default: the domain is
// destroyed then, as xl does.
func TestNoSoftReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}, fails: map[string]int{"soft reset": 1000}}
		end(h.add("web1", "u", `,"on_soft_reset":"soft_reset"`), "soft reset")
		if !keep(t, h, nil) || h.domains[1] != nil {
			t.Errorf("%v", h.did)
		}
	})
}

// An operator renamed the domain: it is started again all the same.
func TestRenamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		d := h.add("web1", "u", `,"on_reboot":"restart"`)
		go func() {
			time.Sleep(5 * time.Second)
			h.change(func() { d.Name = "web2" })
			time.Sleep(5 * time.Second)
			h.change(func() { end(d, "reboot") })
		}()
		keep(t, h, nil)
		if h.domains[2] == nil || h.domains[2].Name != "web2" {
			t.Errorf("%v", h.did)
		}
	})
}

// One reboot after the other.
func TestReboots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		h.add("web1", "0a1b", "")
		go func() {
			for id := uint32(1); id < 4; id++ {
				time.Sleep(20 * time.Second)
				h.change(func() {
					h.domains[id].words = `,"on_reboot":"restart"`
					end(h.domains[id], "reboot")
				})
			}
		}()
		keep(t, h, nil)
		if h.domains[4] == nil {
			t.Errorf("%v", h.did)
		}
	})
}

// What can't be started for long is given up, and said.
func TestGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}, fails: map[string]int{"create": 1000}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		k := &life.Keeper{Host: h, Domain: "web1", Restarting: filepath.Join(t.TempDir(), "restart"), Log: zap.NewNop(), Decide: func() (func(), error) { return func() {}, nil }}
		begun := time.Now()
		err := k.Run(t.Context())
		if took := time.Since(begun); !errors.Is(err, life.ErrNotStarted) || took < life.Patience || took > 2*life.Patience {
			t.Errorf("%v after %v", err, took)
		}
		if _, err := os.Stat(k.Restarting); err == nil {
			t.Error("it is still said to be started again")
		}
	})
}

// A decision may take longer than attempts to start a domain: it is waited for.
func TestLateDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		begun := time.Now()
		k := &life.Keeper{Host: h, Domain: "web1", Restarting: filepath.Join(t.TempDir(), "restart"), Log: zap.NewNop(), Decide: func() (func(), error) {
			if time.Since(begun) < time.Hour {
				return nil, errors.New("not recorded yet")
			}
			return func() {}, nil
		}}
		if err := os.WriteFile(k.Restarting, []byte(`{"c_info":{"type":"pvh","name":"web1","uuid":"u"}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := k.Run(ctx); err != nil || h.domains[1] == nil {
			t.Errorf("%v: %v", err, h.did)
		}
	})
}

// A domain is destroyed only once its configuration is safe: nothing could start it
// again otherwise.
func TestConfigurationFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		keep(t, h, func(k *life.Keeper) { k.Restarting = filepath.Join(t.TempDir(), "full", "restart") })
		if h.domains[1] == nil {
			t.Errorf("%v", h.did)
		}
	})
}

// Somebody starts the domain between two attempts to do so: it is not started beside
// that.
func TestStartedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{domains: map[uint32]*domain{}, fails: map[string]int{"create": 1}}
		end(h.add("web1", "u", `,"on_reboot":"restart"`), "reboot")
		go func() {
			for there := true; there; time.Sleep(100 * time.Millisecond) {
				h.change(func() { there = h.domains[1] != nil })
			}
			h.add("web1", "u", "")
		}()
		keep(t, h, nil)
		if len(h.domains) != 1 || h.fails["create"] != 0 || slices.ContainsFunc(h.did, func(s string) bool { return strings.HasPrefix(s, "create") }) {
			t.Errorf("%d domains: %v", len(h.domains), h.did)
		}
	})
}

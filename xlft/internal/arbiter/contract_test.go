package arbiter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A kind is a kind of arbiter that keeps the contract.
type kind struct {
	name   string
	world  func(t *testing.T) *world
	real   bool // real time: there are files, processes or connections
	rounds int  // of two claims at once
}

var kinds = []kind{
	{name: "fence", world: fences, rounds: 200},
	{name: "manual", world: operators, rounds: 20},
	{name: "etcd", world: etcds, real: true, rounds: 1000},
	{name: "file", world: files, real: true, rounds: 1000},
}

// A world is two hosts, each with its arbiter, for the contract that every
// arbiter keeps.
type world struct {
	// fresh returns a host's arbiter as a daemon has it that has just started.
	fresh    func(xlft.Side) xlft.Arbiter
	arbiters map[xlft.Side]xlft.Arbiter
	// restart stops what the arbiter asks, and starts it again; nil: it has nothing of
	// the kind.
	restart func(t *testing.T)
	// settle waits until no call is under way that got no answer; nil: there is none.
	settle  func()
	names   string // what the error names of an arbiter that can't be reached
	asks    bool   // who wins, an operator says: nobody does by a claim
	timeout time.Duration

	mu    sync.Mutex
	off   map[xlft.Side]bool // the host has no power: what it does has no effect
	fault fault
}

// A fault is what is wrong with the way to an arbiter, or with what it says.
type fault int

const (
	none  fault = iota
	deaf        // nobody can be reached, neither arbiter nor agent
	mute        // what is asked for is done, and the answer is lost
	stuck       // no answer comes, and nothing is done
	liar        // what it says is not true
)

func (w *world) set(f fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

func (w *world) is() fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}

var sides = []xlft.Side{xlft.Primary, xlft.Backup}

// begin starts both hosts' daemons.
func (w *world) begin() {
	w.arbiters = map[xlft.Side]xlft.Arbiter{}
	for _, s := range sides {
		w.arbiters[s] = w.fresh(s)
	}
}

func (w *world) want(s xlft.Side, generation uint64) xlft.Claim {
	return xlft.Claim{Domain: "web1", UUID: "u", Generation: generation, Side: s, Peer: string(other(s))}
}

// claim is a host's claim; false for one that has no power any more.
func (w *world) claim(s xlft.Side, handed bool) (won bool, err error) {
	c := w.want(s, 3)
	c.Handed = handed
	return w.make(c)
}

func (w *world) make(c xlft.Claim) (won bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	won, err = w.arbiters[c.Side].Claim(ctx, c)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.off[c.Side] {
		return false, nil
	}
	return won, err
}

// race has both sides claim at once.
func (w *world) race(generation uint64) (won map[xlft.Side]bool) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	won = map[xlft.Side]bool{}
	for _, s := range sides {
		wg.Go(func() {
			ok, _ := w.make(w.want(s, generation))
			mu.Lock()
			defer mu.Unlock()
			won[s] = ok
		})
	}
	wg.Wait()
	return won
}

// oneWins fails unless exactly one side wins the generation, now and ever after.
func (w *world) oneWins(t *testing.T) {
	t.Helper()
	first := w.race(3)
	if first[xlft.Primary] == first[xlft.Backup] && (first[xlft.Primary] || !w.asks) {
		t.Fatalf("won: %v, want exactly one", first)
	}
	for _, s := range sides {
		if won, _ := w.claim(s, false); won != first[s] && !w.off[s] {
			t.Errorf("%s: won %v, and then %v", s, first[s], won)
		}
	}
}

// neitherWins fails if a side wins, or is told that the other has. It returns the errors.
func (w *world) neitherWins(t *testing.T) (errs map[xlft.Side]error) {
	t.Helper()
	errs = map[xlft.Side]error{}
	for _, s := range sides {
		won, err := w.claim(s, false)
		if won || err == nil {
			t.Errorf("%s: %v, %v, want an error", s, won, err)
			err = errors.New("none")
		}
		errs[s] = err
	}
	return errs
}

// silent is another host that gives no answer.
func silent(ctx context.Context, _ string, _ wire.OwnerQuery) (wire.OwnerResult, error) {
	<-ctx.Done()
	return wire.OwnerResult{}, ctx.Err()
}

// power is the metadata of an agent that takes a host's power.
const power = `<?xml version="1.0" ?><resource-agent name="fence_test"><actions>
<action name="on" automatic="0"/><action name="off"/><action name="reboot"/><action name="status"/><action name="metadata"/></actions></resource-agent>`

// fences is a world whose hosts can power each other off, which takes time.
func fences(*testing.T) *world {
	w := &world{off: map[xlft.Side]bool{}, names: "no route to host", timeout: time.Minute}
	w.fresh = func(s xlft.Side) xlft.Arbiter {
		f := &config.Fence{Levels: [][]config.FenceAgent{{{Timeout: w.timeout, Options: map[string]string{"plug": string(other(s))}}}}}
		return &Fence{
			Peers: map[string]config.Peer{string(other(s)): {Name: string(other(s)), Fence: f}},
			Asker: Asker{Log: zap.NewNop(), Timeout: 3 * time.Second, Ask: silent, Host: string(s), Second: time.Second, HeadStart: 2 * time.Second},
			Agent: func(ctx context.Context, f config.FenceAgent, action string) ([]byte, int, error) {
				if action == "metadata" {
					return []byte(power), 0, nil
				}
				ctx, cancel := context.WithTimeout(ctx, f.Timeout)
				defer cancel()
				select {
				case <-time.After(500 * time.Millisecond):
				case <-ctx.Done():
					return nil, -1, ctx.Err()
				}
				if w.is() == stuck {
					<-ctx.Done()
					return nil, -1, ctx.Err()
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				target := xlft.Side(f.Options["plug"])
				switch {
				case w.fault == deaf:
					return nil, 1, errors.New("no route to host")
				case w.off[s]: // its own power went first
					return nil, 1, errors.New("no power")
				case action == "status" && w.off[target]:
					return nil, 2, errors.New("exit status 2")
				case action == "off" && w.fault != liar:
					// The power controller does it, whether or not who asked lives on.
					w.mu.Unlock()
					time.Sleep(500 * time.Millisecond)
					w.mu.Lock()
					w.off[target] = true
				}
				if w.fault == mute {
					return nil, 1, errors.New("the answer was lost")
				}
				return nil, 0, nil
			},
		}
	}
	w.begin()
	return w
}

// operators is a world in which an operator decides.
func operators(*testing.T) *world {
	w := &world{off: map[xlft.Side]bool{}, asks: true, names: "xl ft-resolve", timeout: time.Second}
	w.fresh = func(xlft.Side) xlft.Arbiter {
		return Manual{Asker{Log: zap.NewNop(), Timeout: time.Second, Ask: silent}}
	}
	w.begin()
	return w
}

// TestContract is what the machines rest on, of any arbiter.
func TestContract(t *testing.T) {
	for _, k := range kinds {
		run := func(what string, f func(t *testing.T, w *world)) {
			t.Run(k.name+"/"+what, func(t *testing.T) {
				if k.real {
					t.Parallel()
					f(t, k.world(t))
					return
				}
				synctest.Test(t, func(t *testing.T) { f(t, k.world(t)) })
			})
		}
		run("one of two that claim at once", func(t *testing.T, w *world) { w.oneWins(t) })
		run("one of two, many times", func(t *testing.T, w *world) {
			wins := map[xlft.Side]int{}
			for g := range k.rounds {
				won := w.race(uint64(g) + 10)
				if won[xlft.Primary] && won[xlft.Backup] || !w.asks && !won[xlft.Primary] && !won[xlft.Backup] {
					t.Fatalf("generation %d: won: %v, want exactly one", g+10, won)
				}
				for s, won := range won {
					if won {
						wins[s]++
					}
				}
				w.mu.Lock()
				w.off = map[xlft.Side]bool{} // an operator switches it on again
				w.mu.Unlock()
			}
			t.Log("won:", wins)
		})
		run("the same answer again", func(t *testing.T, w *world) {
			for range 3 {
				if won, err := w.claim(xlft.Backup, false); won == w.asks || (err == nil) == w.asks {
					t.Errorf("%v, %v, want the same each time: won, unless an operator decides", won, err)
				}
				w.begin() // the daemons are started again
			}
			if won, _ := w.claim(xlft.Primary, false); won {
				t.Error("the other side wins the same generation")
			}
		})
		run("each generation for itself", func(t *testing.T, w *world) {
			if won, _ := w.make(w.want(xlft.Backup, 3)); won == w.asks {
				t.Errorf("generation 3: %v", won)
			}
			w.mu.Lock()
			w.off = map[xlft.Side]bool{}
			w.mu.Unlock()
			if won, _ := w.make(w.want(xlft.Primary, 4)); won == w.asks {
				t.Errorf("generation 4: %v", won)
			}
		})
		run("unreachable is an error that names what, and decides nothing", func(t *testing.T, w *world) {
			w.set(deaf)
			for s, err := range w.neitherWins(t) {
				if !strings.Contains(err.Error(), w.names) {
					t.Errorf("%s: %v, which does not name %q", s, err, w.names)
				}
			}
			w.set(none)
			w.oneWins(t)
		})
		run("no answer is an error, and decides nothing", func(t *testing.T, w *world) {
			w.set(stuck)
			begun := time.Now()
			w.neitherWins(t)
			if took := time.Since(begun); took > 3*w.timeout+10*time.Second {
				t.Errorf("it took %v", took)
			}
			w.set(none)
			if w.settle != nil {
				w.settle()
			}
			w.oneWins(t)
		})
		run("a lost answer is never a loss", func(t *testing.T, w *world) {
			w.set(mute)
			if won, err := w.claim(xlft.Backup, false); !won && err == nil {
				t.Error("lost, against nobody")
			}
			w.set(none)
			if won, err := w.claim(xlft.Backup, false); won == w.asks {
				t.Errorf("claimed again: %v, %v", won, err)
			}
			if won, _ := w.claim(xlft.Primary, false); won {
				t.Error("the other side wins the same generation")
			}
		})
		run("a lie is nobody's win", func(t *testing.T, w *world) {
			w.set(liar)
			if w.is() != liar {
				t.Skip("nothing is believed that could be a lie")
			}
			w.neitherWins(t)
			w.set(none)
			w.oneWins(t)
		})
		run("started again, it knows what it knew", func(t *testing.T, w *world) {
			if w.restart == nil {
				t.Skip("there is nothing to be started again")
			}
			won, err := w.claim(xlft.Primary, false)
			if !won || err != nil {
				t.Fatalf("%v, %v", won, err)
			}
			w.restart(t)
			w.begin()
			for range 2 {
				if won, err := w.claim(xlft.Backup, false); won || err != nil {
					t.Errorf("the other side: %v, %v", won, err)
				}
				if won, err := w.claim(xlft.Primary, false); !won || err != nil {
					t.Errorf("the same side: %v, %v", won, err)
				}
			}
		})
		run("a claim that is not wanted any more ends, and wins nothing", func(t *testing.T, w *world) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for _, s := range sides {
				if won, err := w.arbiters[s].Claim(ctx, w.want(s, 3)); won || err == nil {
					t.Errorf("%s, cancelled: %v, %v", s, won, err)
				}
			}
			withdrawn := make(chan struct{})
			close(withdrawn)
			c := w.want(xlft.Backup, 3)
			c.Withdrawn = withdrawn
			if won, err := w.make(c); won || !errors.Is(err, xlft.ErrWithdrawn) {
				t.Errorf("withdrawn: %v, %v", won, err)
			}
			w.oneWins(t)
		})
		run("a domain that was handed over is the backup's", func(t *testing.T, w *world) {
			if won, err := w.claim(xlft.Backup, true); !won || err != nil {
				t.Errorf("backup: %v, %v", won, err)
			}
			if won, _ := w.claim(xlft.Primary, true); won {
				t.Error("the primary takes back what it handed over")
			}
			if w.off[xlft.Primary] || w.off[xlft.Backup] {
				t.Error("a host was fenced")
			}
		})
		run("a check says what a claim would meet", func(t *testing.T, w *world) {
			for _, s := range sides {
				a, ok := w.arbiters[s].(xlft.ArbiterChecker)
				if !ok {
					t.Skip("there is nothing to be asked")
				}
				for f, fails := range map[fault]bool{none: false, deaf: true} {
					w.set(f)
					err := a.Check(t.Context(), string(other(s)))
					if (err != nil) != fails || err != nil && !strings.Contains(err.Error(), w.names) {
						t.Errorf("fault %d: %v, want one that names %q", f, err, w.names)
					}
				}
			}
		})
	}
}

// Each host runs a domain that the other one protects, and only the network between them
// breaks: all four claims are made, and one host stays.
func TestOneHostStays(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			w := fences(t)
			var wg sync.WaitGroup
			var mu sync.Mutex
			wins := map[xlft.Side]int{} // of the claims of each host
			for _, host := range sides {
				for _, side := range sides {
					c := xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: side, Peer: string(other(host))}
					a := w.fresh(host) // each domain has a process
					wg.Go(func() {
						if ok, _ := a.Claim(t.Context(), c); ok {
							mu.Lock()
							defer mu.Unlock()
							wins[host]++
						}
					})
				}
			}
			wg.Wait()
			if w.off[xlft.Primary] == w.off[xlft.Backup] {
				t.Fatalf("off: %v", w.off)
			}
			for _, host := range sides {
				if want := map[bool]int{true: 0, false: 2}[w.off[host]]; wins[host] != want {
					t.Errorf("%s won %d claims; off: %v", host, wins[host], w.off)
				}
			}
		})
	}
}

// Whoever runs the domain stays, whatever the hosts are called and whichever has a delay.
func TestRunnerStays(t *testing.T) {
	for _, runner := range sides {
		for _, delay := range []time.Duration{0, 10 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				w := fences(t)
				w.arbiters[runner].(*Fence).Peers[string(other(runner))].Fence.Delay = delay // of this host as a backup
				var wg sync.WaitGroup
				for host, a := range w.arbiters {
					c := xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: xlft.Backup, Peer: string(other(host))}
					if host == runner {
						c.Side = xlft.Primary
					}
					wg.Go(func() { a.Claim(t.Context(), c) })
				}
				wg.Wait()
				if w.off[runner] || !w.off[other(runner)] {
					t.Errorf("%s ran the domain, with a delay of %v; off: %v", runner, delay, w.off)
				}
			})
		}
	}
}

// A claim that two hosts could not mean alike is no claim.
func TestClaimNamesAll(t *testing.T) {
	whole := xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: xlft.Backup, Peer: "alpha"}
	for what, spoil := range map[string]func(*xlft.Claim){
		"domain":     func(c *xlft.Claim) { c.Domain = "" },
		"uuid":       func(c *xlft.Claim) { c.UUID = "" },
		"generation": func(c *xlft.Claim) { c.Generation = 0 },
		"peer":       func(c *xlft.Claim) { c.Peer = "" },
		"itself":     func(c *xlft.Claim) { c.Peer = "beta" },
	} {
		c := whole
		spoil(&c)
		a := &Ledger{Kind: "test", Host: "beta", Register: panics{}}
		if won, err := a.Claim(t.Context(), c); won || err == nil {
			t.Errorf("%s: %v, %v", what, won, err)
		}
	}
}

// panics is a register that may not be asked.
type panics struct{ Register }

// A memory is a register of this process. Its clock and its claims can be changed.
type memory struct {
	there map[Key][]byte
	id    string
}

func (m *memory) First(_ context.Context, k Key, v []byte) ([]byte, string, error) {
	if m.there[k] == nil {
		m.there[k] = v
	}
	return m.there[k], m.id, nil
}
func (m *memory) Probe(context.Context) (string, error) { return m.id, nil }
func (m *memory) Where(k Key) (string, string)          { return fmt.Sprint(k), "rm" }

// What a register has is judged by who wrote it about what, and by nothing else: not by
// a clock.
func TestJudge(t *testing.T) {
	const mine = `{"domain":"web1","uuid":"u","generation":3,"side":"backup","host":"beta","peer":"alpha","at":"2026-01-01T00:00:00Z"}`
	const theirs = `{"domain":"web1","uuid":"u","generation":3,"side":"primary","host":"alpha","peer":"beta","at":"2026-01-01T00:00:00Z"}`
	for _, c := range []struct {
		name, there string
		won         bool
		err         string
	}{
		{"mine", mine, true, ""},
		{"theirs", theirs, false, ""},
		{"mine, of the future", strings.Replace(mine, "2026", "2999", 1), true, ""},
		{"theirs, of long ago", strings.Replace(theirs, "2026", "1970", 1), false, ""},
		{"nothing", "", false, "is no claim"},
		{"cut off", mine[:40], false, "is no claim"},
		{"of an earlier backup", strings.Replace(mine, `"beta"`, `"gamma"`, 1), false, "earlier life"},
		{"of an earlier primary", strings.Replace(theirs, `"alpha"`, `"gamma"`, 1), false, "earlier life"},
		{"of when this host was the primary", strings.Replace(mine, "backup", "primary", 1), false, "earlier life"},
		{"of when the other host was the backup", strings.Replace(theirs, "primary", "backup", 1), false, "earlier life"},
		{"against another host", strings.Replace(mine, `"alpha"`, `"gamma"`, 1), false, "earlier life"},
		{"of another generation", strings.Replace(mine, "3", "2", 1), false, "earlier life"},
		{"of another domain", strings.Replace(mine, "web1", "web2", 1), false, "earlier life"},
		{"of another run of its name", strings.Replace(mine, `"u"`, `"v"`, 1), false, "earlier life"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &memory{map[Key][]byte{{"web1", "u", 3}: []byte(c.there)}, "here"}
			a := &Ledger{Kind: "test", Host: "beta", Register: m}
			if c.there == "" {
				m.there[Key{"web1", "u", 3}] = []byte{}
			}
			won, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: xlft.Backup, Peer: "alpha"})
			if won != c.won || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, %v, want %v, %q", won, err, c.won, c.err)
			}
		})
	}
}

// What was agreed on before a configuration was read anew counts afterwards.
func TestSucceed(t *testing.T) {
	m := &memory{map[Key][]byte{}, "here"}
	was := &Ledger{Kind: "test", Host: "beta", Register: m}
	if err := was.Check(t.Context(), "alpha"); err != nil {
		t.Fatal(err)
	}
	m.id = "elsewhere"
	is := &Ledger{Kind: "test", Host: "beta", Register: m}
	is.Succeed(None{})
	is.Succeed(was)
	won, err := is.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: xlft.Backup, Peer: "alpha"})
	if won || !errors.Is(err, errReplaced) {
		t.Errorf("%v, %v", won, err)
	}
}

// A register that takes another's place wins nobody anything, and is no good arbiter.
func TestReplaced(t *testing.T) {
	m := &memory{map[Key][]byte{}, "here"}
	a := &Ledger{Kind: "test", Host: "beta", Register: m}
	name, err := xlft.ArbiterName(t.Context(), a)
	if name != "test here" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
	for _, m.id = range []string{"elsewhere", ""} {
		won, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: xlft.Backup, Peer: "alpha"})
		if won || !errors.Is(err, errReplaced) {
			t.Errorf("%q: %v, %v", m.id, won, err)
		}
		if err := a.Check(t.Context(), "alpha"); !errors.Is(err, errReplaced) {
			t.Errorf("%q: %v", m.id, err)
		}
	}
}

package netbuffer_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"xlft/netbuffer"
	"xlft/netbuffer/netbuffertest"
)

// vif describes a path as a process finds it.
func vif(p *netbuffertest.Path) netbuffer.Vif {
	return netbuffer.Vif{Name: "vif1.0", Path: p, Current: p.Current()}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// left runs a gate and forgets it, as if its process died: sealed epochs were
// sealed and all but the last one released. The packets "s" of the last sealed
// epoch and "r" of the running one wait.
func left(t *testing.T, p *netbuffertest.Path, sealed uint64) {
	t.Helper()
	g := netbuffer.New(netbuffer.Options{}, vif(p))
	for e := uint64(1); e < sealed; e++ {
		must(t, g.Seal(e), g.Release(e))
	}
	p.Send([]byte("s"))
	must(t, g.Seal(sealed))
	p.Send([]byte("r"))
}

// TestAdopt: an adopted gate holds, refuses what needs to know the epochs, and
// works like a new one after ReleaseAll.
func TestAdopt(t *testing.T) {
	for _, sealed := range []uint64{2, 3} { // so that either queue is current
		t.Run(fmt.Sprintf("Queue%d", sealed%2), func(t *testing.T) {
			var out []byte
			p := netbuffertest.NewPath(func(b []byte) { out = append(out, b...) })
			left(t, p, sealed)
			if got := p.Current(); got != int(sealed%2) || !p.Holding() {
				t.Fatalf("current queue %d, holding %v", got, p.Holding())
			}
			if got := slices.Concat(p.Waiting()...); string(got) != "sr" {
				t.Errorf("%q waits, want %q", got, "sr")
			}

			g := netbuffer.Adopt(netbuffer.Options{}, vif(p))
			if holding, adopted := g.Holding(); !holding || !adopted {
				t.Errorf("holding %v, adopted %v", holding, adopted)
			}
			if err := g.Seal(sealed + 1); !errors.Is(err, netbuffer.ErrAdopted) {
				t.Errorf("seal: got %v, want ErrAdopted", err)
			}
			if err := g.Drain(t.Context()); !errors.Is(err, netbuffer.ErrAdopted) {
				t.Errorf("drain: got %v, want ErrAdopted", err)
			}
			if err := g.Release(sealed); !errors.Is(err, netbuffer.ErrEpoch) {
				t.Errorf("release: got %v, want ErrEpoch", err)
			}
			p.Send([]byte("t"))
			if s, err := g.Stats(); err != nil || s.Packets != 3 || !s.Holding || s.Sealed != 0 {
				t.Errorf("stats: %+v, %v", s, err)
			}
			if len(out) > 0 {
				t.Fatalf("%q came out", out)
			}
			must(t, g.ReleaseAll())
			if string(out) != "srt" {
				t.Errorf("%q came out, want %q", out, "srt")
			}
			if holding, adopted := g.Holding(); holding || adopted || p.Holding() {
				t.Errorf("released: holding %v, adopted %v, the path holds: %v", holding, adopted, p.Holding())
			}

			must(t, g.Seal(1))
			p.Send([]byte("u"))
			must(t, g.Release(1), g.Seal(2))
			if string(out) != "srt" {
				t.Errorf("sealed anew: %q came out, want %q", out, "srt")
			}
			must(t, g.Release(2))
			if string(out) != "srtu" {
				t.Errorf("released anew: %q came out, want %q", out, "srtu")
			}
		})
	}
}

// TestAdoptDiscard: nothing of a discarded gate comes out.
func TestAdoptDiscard(t *testing.T) {
	p := netbuffertest.NewPath(func(b []byte) { t.Errorf("%q came out", b) })
	q := netbuffertest.NewPath(func(b []byte) { t.Errorf("%q came out", b) })
	g := netbuffer.New(netbuffer.Options{}, vif(p), vif(q))
	must(t, g.Seal(1))
	p.Send([]byte("a"))
	q.Send([]byte("b"))

	g = netbuffer.Adopt(netbuffer.Options{}, vif(p), vif(q))
	must(t, g.Discard())
	p.Destroy()
	q.Destroy()
	p.Send([]byte("c"))
	if n := len(p.Waiting()) + len(q.Waiting()); n > 0 || p.Holding() {
		t.Errorf("%d packets wait, holding %v", n, p.Holding())
	}
	if err := g.ReleaseAll(); !errors.Is(err, netbuffer.ErrClosed) {
		t.Errorf("release all: got %v, want ErrClosed", err)
	}
	p.Fail(nil)
	if err := p.Change(0, netbuffer.Pass); err == nil {
		t.Error("a destroyed queue can be opened")
	}
}

// TestNewOnAUsedPath: a gate goes on with a path that an earlier one left open,
// even if the earlier packets are still leaving.
func TestNewOnAUsedPath(t *testing.T) {
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("Slow=%v", slow), func(t *testing.T) {
			var out []byte
			p := netbuffertest.NewPath(func(b []byte) { out = append(out, b...) })
			g := netbuffer.New(netbuffer.Options{}, vif(p))
			p.Slow(slow)
			must(t, g.Seal(1))
			p.Send([]byte("a"))
			must(t, g.ReleaseAll())
			if p.Current() != 1 || p.Holding() {
				t.Fatalf("current queue %d, holding %v", p.Current(), p.Holding())
			}

			g = netbuffer.New(netbuffer.Options{}, vif(p))
			if holding, adopted := g.Holding(); holding || adopted {
				t.Errorf("holding %v, adopted %v", holding, adopted)
			}
			p.Send([]byte("b"))
			must(t, g.Seal(1))
			p.Send([]byte("c"))
			must(t, g.Release(1), g.Seal(2))
			if string(out) != "ab" {
				t.Errorf("%q came out, want %q", out, "ab")
			}
			must(t, g.Release(2), g.Seal(3))
			if string(out) != "abc" {
				t.Errorf("%q came out, want %q", out, "abc")
			}
		})
	}
}

// restarting is a gate whose process dies before and after each ReleaseAll.
type restarting struct {
	*netbuffer.Gate
	paths []*netbuffertest.Path
}

func (r *restarting) restart() {
	make := netbuffer.New
	var vifs []netbuffer.Vif
	for _, p := range r.paths {
		vifs = append(vifs, vif(p))
		if p.Holding() {
			make = netbuffer.Adopt
		}
	}
	r.Gate = make(netbuffer.Options{}, vifs...)
}

func (r *restarting) ReleaseAll() error {
	r.restart()
	defer r.restart()
	return r.Gate.ReleaseAll()
}

// TestRestartsLoseNothing is TestNothingLeavesBeforeItsEpoch with processes
// that die.
func TestRestartsLoseNothing(t *testing.T) {
	for seed := range uint64(200) {
		err := play(seed, func(paths []*netbuffertest.Path) sealer {
			r := &restarting{paths: paths}
			r.restart()
			return r
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestNap: in a bubble all waiting takes the bubble's time, also while others
// wait for the gate.
func TestNap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := netbuffertest.NewPath(func([]byte) {})
		q := &full{Path: netbuffertest.NewPath(func([]byte) {})}
		g := netbuffer.New(netbuffer.Options{Timeout: time.Second, Nap: time.Sleep}, vif(p), netbuffer.Vif{Name: "vif1.1", Path: q})
		must(t, g.Seal(1), g.Release(1))
		q.full = true
		start := time.Now()
		drained := make(chan error)
		go func() { drained <- g.Drain(t.Context()) }()
		synctest.Wait() // Drain naps
		if _, err := g.Stats(); err != nil {
			t.Error(err)
		}
		if err := <-drained; !errors.Is(err, netbuffer.ErrBusy) {
			t.Errorf("got %v, want ErrBusy", err)
		}
		if d := time.Since(start); d < time.Second || d > time.Second+10*time.Millisecond {
			t.Errorf("drain took %v, want 1s", d)
		}
	})
}

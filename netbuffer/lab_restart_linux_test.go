//go:build lab

package netbuffer

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// crash forgets a gate as a killed process would.
func crash(g *Gate) { g.host.close() }

// crashHolding ends the process with an epoch of n packets sealed, and one running.
func crashHolding(t *testing.T, g *Gate, u *guest, n int) {
	t.Helper()
	must(t, "seal 1", g.Seal(1))
	u.burst(2, n)
	flush()
	must(t, "release 1", g.Release(1))
	must(t, "seal 2", g.Seal(2))
	u.burst(3, n)
	flush()
	crash(g)
}

func TestLabAdopt(t *testing.T) {
	w := newWorld(t, 2)
	u := newGuest(t, 0, 1)
	g := w.open(Options{})
	u.burst(1, 6)
	flush()
	inOrder(t, "before the seal", w.wait(6), 0, 6)

	crash(g) // before it held: the next process finds it open
	g = w.open(Options{})
	if holding, adopted := g.Holding(); holding || adopted {
		t.Errorf("holding %v, adopted %v", holding, adopted)
	}
	u.burst(1, 6)
	flush()
	inOrder(t, "adopted open", w.wait(6), 6, 12)

	crashHolding(t, g, u, 10)
	if ids, err := Stale(); err != nil || !slices.Equal(ids, []uint32{domid}) {
		t.Errorf("stale: %v, %v", ids, err)
	}
	g = w.open(Options{})
	if holding, adopted := g.Holding(); !holding || !adopted {
		t.Errorf("holding %v, adopted %v", holding, adopted)
	}
	u.burst(3, 4)
	flush()
	inOrder(t, "adopted holding", w.wait(0), 0, 0)
	if err := g.Seal(3); !errors.Is(err, ErrAdopted) {
		t.Errorf("seal: got %v, want ErrAdopted", err)
	}
	if err := g.Release(2); !errors.Is(err, ErrEpoch) {
		t.Errorf("release: got %v, want ErrEpoch", err)
	}
	must(t, "release all", g.ReleaseAll())
	inOrder(t, "all released", w.wait(24), 12, 36)
	must(t, "seal 1 anew", g.Seal(1))
	u.burst(2, 5)
	flush()
	must(t, "seal 2 anew", errors.Join(g.Release(1), g.Seal(2), g.Release(2)))
	inOrder(t, "released", w.wait(5), 36, 41)
	must(t, "seal 3 anew", g.Seal(3))
	u.burst(3, 5)
	flush()
	crash(g)
	must(t, "cleanup", Cleanup(domid, Options{}, false))
	inOrder(t, "cleaned up", w.wait(5), 41, 46)
	nothingLeft(t)
}

func TestLabDiscard(t *testing.T) {
	w := newWorld(t, 1)
	u := newGuest(t, 0, 1)
	g := w.open(Options{})
	must(t, "seal 1", g.Seal(1))
	u.burst(2, 20)
	flush()
	must(t, "release 1", g.Release(1))
	must(t, "seal 2", g.Seal(2))
	u.burst(3, 20)
	flush()
	must(t, "discard", g.Discard())
	u.burst(3, 20) // a domain that should be gone by now
	flush()
	inOrder(t, "discarded", w.wait(0), 0, 0)
	if ids, err := Stale(); err != nil || len(ids) > 0 {
		t.Errorf("gates left: %v, %v", ids, err)
	}

	// A new gate on that vif works, and gets rid of the dead redirect.
	g = w.open(Options{})
	from := u.n
	u.burst(1, 6)
	flush()
	inOrder(t, "new gate", w.wait(6), from, from+6)
	must(t, "close", g.Close())
	from = u.n
	u.burst(1, 6)
	flush()
	inOrder(t, "after close", w.wait(6), from, from+6)
}

func TestLabDomainDestroyed(t *testing.T) {
	w := newWorld(t, 2)
	u := newGuest(t, 0, 1)
	g := w.open(Options{})
	must(t, "seal 1", g.Seal(1))
	u.burst(2, 20)
	flush()
	vif, err := netlink.LinkByName("vif901.0")
	if err == nil {
		err = netlink.LinkDel(vif)
	}
	must(t, "remove vif", err)
	must(t, "release 1", g.Release(1))
	must(t, "seal 2", g.Seal(2))
	must(t, "release 2", g.Release(2))
	s, err := g.Stats()
	if err != nil || len(s.Vifs) != 2 || !s.Vifs[0].Gone || s.Vifs[1].Gone {
		t.Errorf("stats: %+v, %v", s, err)
	}
	must(t, "discard", g.Discard())
	if ids, err := Stale(); err != nil || len(ids) > 0 {
		t.Errorf("gates left: %v, %v", ids, err)
	}
	if n := len(w.take()); n > 0 {
		t.Errorf("%d frames of a vif that is gone came out", n)
	}
}

func TestLabNewVif(t *testing.T) {
	w := newWorld(t, 1)
	g := w.open(Options{})
	must(t, "seal 1", g.Seal(1))
	must(t, "release 1", g.Release(1))
	w.plugIn("vif901.1", "guest1")
	var nv *NewVifError
	if err := g.Seal(2); !errors.As(err, &nv) || !slices.Equal(nv.Vifs, []string{"vif901.1"}) {
		t.Fatalf("got %v, want a NewVifError for vif901.1", err)
	}
	names, err := g.AddVifs()
	if err != nil || !slices.Equal(names, []string{"vif901.1"}) {
		t.Fatalf("add vifs: %v, %v", names, err)
	}
	u := newGuest(t, 1, 1)
	u.burst(2, 10)
	flush()
	inOrder(t, "new vif holds at once", w.wait(0), 0, 0)
	must(t, "seal 2", g.Seal(2))
	u.burst(3, 10)
	flush()
	must(t, "release 2", g.Release(2))
	inOrder(t, "released", w.wait(10), 0, 10)
	must(t, "close", g.Close())
	inOrder(t, "closed", w.wait(10), 10, 20)
}

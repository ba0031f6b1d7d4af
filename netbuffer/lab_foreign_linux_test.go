//go:build lab

package netbuffer

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func qdisc(t *testing.T, kind string) {
	t.Helper()
	vif, err := netlink.LinkByName("vif901.0")
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.QdiscAttrs{LinkIndex: vif.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}
	var q netlink.Qdisc = &netlink.Ingress{QdiscAttrs: attrs}
	if kind == "clsact" {
		q = &netlink.Clsact{QdiscAttrs: attrs}
	}
	must(t, "add "+kind, netlink.QdiscAdd(q))
}

// TestLabShares: a qdisc that was there stays, with or without a gate.
func TestLabShares(t *testing.T) {
	for _, kind := range []string{"ingress", "clsact"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, 1)
			qdisc(t, kind)
			u := newGuest(t, 0, 1)
			g := w.open(Options{})
			must(t, "seal 1", g.Seal(1))
			u.burst(2, 6)
			flush()
			inOrder(t, "held", w.wait(0), 0, 0)
			must(t, "close", g.Close())
			inOrder(t, "closed", w.wait(6), 0, 6)
			vif, _ := netlink.LinkByName("vif901.0")
			qs, err := netlink.QdiscList(vif)
			if err != nil || !slices.ContainsFunc(qs, func(q netlink.Qdisc) bool { return q.Type() == kind }) {
				t.Errorf("%s is gone (%v)", kind, err)
			}
		})
	}
}

func foreignFilter(t *testing.T) netlink.Filter {
	t.Helper()
	vif, err := netlink.LinkByName("vif901.0")
	if err != nil {
		t.Fatal(err)
	}
	return &netlink.MatchAll{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: vif.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 7, Protocol: unix.ETH_P_IP},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_PIPE},
			MirredAction: netlink.TCA_EGRESS_MIRROR,
			Ifindex:      vif.Attrs().Index,
		}},
	}
}

func TestLabForeignFilter(t *testing.T) {
	w := newWorld(t, 1)
	qdisc(t, "clsact")
	f := foreignFilter(t)
	must(t, "add filter", netlink.FilterAdd(f))
	var fe *ForeignError
	if _, err := Open(domid, Options{}); !errors.As(err, &fe) || fe.Vif != "vif901.0" {
		t.Fatalf("got %v, want a ForeignError", err)
	} else {
		t.Log(err)
	}
	if ids, _ := Stale(); len(ids) > 0 {
		t.Errorf("gates left: %v", ids)
	}
	must(t, "delete filter", netlink.FilterDel(f))
	g := w.open(Options{})
	must(t, "add filter", netlink.FilterAdd(f))
	if _, err := g.Stats(); !errors.Is(err, ErrForeign) {
		t.Errorf("a filter that came later: got %v, want ErrForeign", err)
	}
	must(t, "close", g.Close())
	fs, err := netlink.FilterList(mustLink(t, "vif901.0"), netlink.HANDLE_MIN_INGRESS)
	if err != nil || len(fs) == 0 {
		t.Errorf("the foreign filter is gone (%v)", err)
	}
}

// TestLabIntruders: what some other program puts at a vif that is gated is
// noticed, and nothing else is.
func TestLabIntruders(t *testing.T) {
	for _, i := range intruders {
		t.Run(i.name, func(t *testing.T) {
			w := newWorld(t, 1)
			g := w.open(Options{})
			must(t, "seal 1", g.Seal(1))
			if _, _, err := g.Held(); err != nil {
				t.Fatal(err)
			}
			i.enter(t, mustLink(t, "vif901.0"))
			soon(t, "held says that another program is there", func() bool {
				_, _, err := g.Held()
				return errors.Is(err, ErrForeign)
			})
			// The next process has to decide on what waits all the same.
			u := newGuest(t, 0, 1)
			crash(g)
			g = w.open(Options{})
			if holding, adopted := g.Holding(); !holding || !adopted {
				t.Errorf("holding %v, adopted %v", holding, adopted)
			}
			if err := Inspect(domid, Options{}); !errors.Is(err, ErrForeign) {
				t.Errorf("inspect: got %v, want ErrForeign", err)
			}
			if _, _, err := g.Held(); !errors.Is(err, ErrForeign) {
				t.Errorf("held by the next process: got %v, want ErrForeign", err)
			}
			must(t, "release all", g.ReleaseAll())
			u.burst(1, 6)
			must(t, "close", g.Close())
		})
	}
}

// TestLabBypassIsNoticed: some other program removes the redirect. Seal and Held
// say so, and Restore holds again.
func TestLabBypassIsNoticed(t *testing.T) {
	w := newWorld(t, 1)
	u := newGuest(t, 0, 1)
	g := w.open(Options{})
	must(t, "seal 1", g.Seal(1))
	if _, err := g.Stats(); err != nil {
		t.Fatal(err)
	}
	must(t, "remove clsact", netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: mustLink(t, "vif901.0").Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}))
	if s, err := g.Stats(); !errors.Is(err, ErrBypassed) || len(s.Vifs) != 1 {
		t.Errorf("stats: got %+v, %v, want ErrBypassed", s, err)
	}
	if _, limit, err := g.Held(); !errors.Is(err, ErrBypassed) || limit == 0 {
		t.Errorf("held: got %v, limit %d, want ErrBypassed", err, limit)
	}
	u.burst(2, 6)
	flush()
	inOrder(t, "bypassed", w.wait(6), 0, 6)
	must(t, "release 1", g.Release(1))
	if err := g.Seal(2); !errors.Is(err, ErrBypassed) {
		t.Errorf("seal: got %v, want ErrBypassed", err)
	}
	names, err := g.Restore()
	if err != nil || !slices.Equal(names, []string{"vif901.0"}) {
		t.Fatalf("restore: %v, %v", names, err)
	}
	u.burst(2, 6)
	flush()
	inOrder(t, "restored", w.wait(0), 0, 0)
	must(t, "seal 2", g.Seal(2))
	must(t, "release 2", g.Release(2))
	inOrder(t, "released", w.wait(6), 6, 12)
	must(t, "close", g.Close())
	nothingLeft(t) // also not the clsact, which is ours now
}

//go:build lab

package netbuffer

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestLabSealAndRelease(t *testing.T) {
	w := newWorld(t, 1)
	u := newGuest(t, 0, 1)
	u.burst(0, 12)
	flush()
	inOrder(t, "without a gate", w.wait(12), 0, 12)

	g := w.open(Options{})
	u.burst(1, 12)
	flush()
	inOrder(t, "before the first seal", w.wait(12), 12, 24)

	must(t, "seal 1", g.Seal(1))
	u.burst(2, 30) // numbers 24 to 53
	flush()
	inOrder(t, "epoch 2, running", w.wait(0), 0, 0)
	s, err := g.Stats()
	if err != nil || s.Packets < 30 || s.Packets > 30+own || s.Drops != 0 || !s.Holding || s.Sealed != 1 {
		t.Errorf("stats: got %+v, %v", s, err)
	}
	must(t, "release 1", g.Release(1))
	inOrder(t, "epoch 2, after release 1", w.wait(0), 0, 0)

	must(t, "seal 2", g.Seal(2))
	u.burst(3, 18) // 54 to 71
	flush()
	inOrder(t, "epochs 2 and 3, held", w.wait(0), 0, 0)
	must(t, "release 2", g.Release(2))
	inOrder(t, "released epoch 2", w.wait(30), 24, 54)

	must(t, "seal 3", g.Seal(3))
	must(t, "release 3", g.Release(3))
	inOrder(t, "released epoch 3", w.wait(18), 54, 72)

	u.burst(4, 18) // 72 to 89: late
	flush()
	inOrder(t, "late", w.wait(0), 0, 0)
	must(t, "drain", g.Drain(t.Context()))
	inOrder(t, "drained", w.wait(18), 72, 90)
	u.burst(4, 12) // 90 to 101
	flush()
	inOrder(t, "still holding", w.wait(0), 0, 0)

	must(t, "seal 4", g.Seal(4))
	u.burst(5, 12) // 102 to 113
	flush()
	must(t, "release all", g.ReleaseAll())
	inOrder(t, "all released", w.wait(24), 90, 114)
	u.burst(5, 12)
	flush()
	inOrder(t, "after release all", w.wait(12), 114, 126)

	must(t, "seal again", g.Seal(5))
	u.burst(6, 12)
	flush()
	inOrder(t, "held again", w.wait(0), 0, 0)
	must(t, "close", g.Close())
	inOrder(t, "closed", w.wait(12), 126, 138)
	u.burst(6, 12)
	flush()
	inOrder(t, "after close", w.wait(12), 138, 150)
	nothingLeft(t)
}

func TestLabLimit(t *testing.T) {
	w := newWorld(t, 1)
	u := newGuest(t, 0, 1)
	g := w.open(Options{drop: 5000})
	must(t, "seal 1", g.Seal(1))
	u.burst(2, 100)
	flush()
	s, err := g.Stats()
	if !errors.Is(err, ErrDropped) || s.Drops == 0 || s.Bytes > 5000 || s.Packets+s.Drops < 100 || s.Packets+s.Drops > 100+own {
		t.Errorf("stats: %+v, %v", s, err)
	}
	must(t, "release 1", g.Release(1))
	must(t, "seal 2", g.Seal(2))
	must(t, "release 2", g.Release(2))
	got := w.wait(int(s.Packets))
	if uint64(len(got))+own < s.Packets {
		t.Errorf("%d frames came out of %d that had room", len(got), s.Packets)
	}
	inOrder(t, "what had room", got, 0, uint32(len(got)))
	must(t, "close", g.Close())
}

// TestLabLost: packets that the redirect can't put into a queue are told.
func TestLabLost(t *testing.T) {
	w := newWorld(t, 1)
	u := newGuest(t, 0, 1)
	g := w.open(Options{})
	must(t, "seal 1", g.Seal(1))
	if _, _, err := g.Held(); err != nil {
		t.Fatal(err)
	}
	must(t, "set ifb down", netlink.LinkSetDown(mustLink(t, suffix("xlft901.0", g.vifs[0].Current))))
	u.burst(2, 6)
	flush()
	if _, _, err := g.Held(); !errors.Is(err, ErrDropped) {
		t.Errorf("got %v, want ErrDropped", err)
	} else {
		t.Log(err)
	}
	inOrder(t, "lost", w.wait(0), 0, 0)
	must(t, "discard", g.Discard())
}

// TestLabCost says what Seal and Release cost when nothing else runs.
func TestLabCost(t *testing.T) {
	const n = 50
	for _, vifs := range []int{1, 4} {
		t.Run(fmt.Sprintf("%dVifs", vifs), func(t *testing.T) {
			w := newWorld(t, vifs)
			g := w.open(Options{})
			u := newGuest(t, 0, 1)
			must(t, "seal", g.Seal(1))
			must(t, "release", g.Release(1))
			var seal, release []time.Duration
			for e := uint64(2); e < n+2; e++ {
				u.burst(e, 4)
				time.Sleep(time.Millisecond)
				start := time.Now()
				must(t, "seal", g.Seal(e))
				seal = append(seal, time.Since(start))
				start = time.Now()
				must(t, "release", g.Release(e))
				release = append(release, time.Since(start))
			}
			slices.Sort(seal)
			slices.Sort(release)
			t.Logf("median and longest of %d: seal %v, %v; release %v, %v", n, seal[n/2], seal[n-1], release[n/2], release[n-1])
			must(t, "close", g.Close())
			inOrder(t, "all", w.wait(4*n), 0, 4*n)
		})
	}
}

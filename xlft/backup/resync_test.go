package backup

import (
	"testing"
	"testing/synctest"

	"xlft/diskrepl"
	"xlft/xlft"
)

// session runs a session from its begin to so many epochs, and ends it in order.
func (w *crashWorld) session(g *guest, epochs uint64) (known bool) {
	p, err := g.protect(w.hosts[1], fault{})
	if err == nil {
		err = p.link.AwaitSync()
	}
	for e := uint64(1); e <= epochs && err == nil; e++ {
		on := g.still()
		if err = p.epoch(g, e, true); err == nil && e == 1 {
			err = w.compare(g, w.hosts[1])
		}
		on()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer p.leave()
	return p.link.Progress().Known
}

// A resync of what is known to have changed that is interrupted before it is complete
// leaves a copy of which the same is known: the next one is of what changed since the
// same checkpoint. One whose primary does not know is interrupted for good.
func TestInterruptedResyncIsKnown(t *testing.T) {
	w := newCrashWorld(t, 1)
	w.durable = false
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		g := w.runs(w.hosts[0])
		defer func() { g.end() }()
		record := func() xlft.DiskRecord { return w.hosts[1].recordNow().DiskRecord }
		if w.session(g, 3) {
			t.Error("the first copy was known")
		}
		point := record().SyncPoint
		for range 3 {
			p, err := g.protect(w.hosts[1], fault{kind: breaks, after: 200000})
			if err != nil {
				t.Fatal(err)
			}
			g.request(0)
			p.link.AwaitSync() // or the connection breaks: the first checkpoint is not taken
			p.leave()
			if r := record(); r.State != xlft.Inconsistent || r.SyncPoint != point {
				t.Fatalf("interrupted, the copy is %+v, it was of %+v", r, point)
			}
			if _, err := w.hosts[1].hand().promote(); err != errNotPromoted {
				t.Errorf("promoted half way: %v", err)
			}
		}
		if !w.session(g, 2) {
			t.Error("a resync after one that was interrupted compares the whole disk")
		}

		// Another disk server, which knows nothing.
		clear(g.mem)
		g.mu.Lock()
		g.m = diskrepl.NewMirror(crashDevice{g.h})
		g.m.Track(g.mem)
		g.mu.Unlock()
		p, err := g.protect(w.hosts[1], fault{kind: breaks, after: 60000})
		if err != nil {
			t.Fatal(err)
		}
		p.link.AwaitSync()
		p.leave()
		if r := record(); r.State != xlft.Inconsistent || r.SyncPoint.Epoch != 0 {
			t.Errorf("a comparison was interrupted, and the copy is %+v", r)
		}
	})
}

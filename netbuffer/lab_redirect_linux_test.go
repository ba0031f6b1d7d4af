//go:build lab

package netbuffer

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// oldRedirect replaces the redirect of a gate, which is at rest, by one as gates
// of earlier versions had it: mirred alone, with the control "stolen".
func oldRedirect(t *testing.T, g *Gate) {
	t.Helper()
	d := g.vifs[0].Path.(*device)
	f := d.filter(g.vifs[0].Current, filterPriority)
	must(t, "delete filter", d.tc.h.FilterDel(f))
	m := f.Actions[0].(*netlink.MirredAction)
	m.Index, m.Action = 0x78000000|d.ifb[0].Attrs().Index, netlink.TC_ACT_STOLEN
	f.Actions = f.Actions[:1]
	must(t, "add filter", d.tc.h.FilterAdd(f))
}

// ourFilters returns the filters of gates on vif901.0.
func ourFilters(t *testing.T, d *device) (fs []netlink.Filter) {
	t.Helper()
	all, err := d.tc.filters(mustLink(t, "vif901.0"))
	must(t, "list filters", err)
	for _, f := range all {
		if ours(f) {
			fs = append(fs, f)
		}
	}
	return fs
}

// TestLabRedirects: whatever redirect an earlier process left, Open makes one of
// it that holds copies, and meanwhile no frame is lost, overtakes another or
// leaves, if the gate held.
func TestLabRedirects(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave func(t *testing.T, g *Gate)
	}{
		{"as it should be", func(*testing.T, *Gate) {}},
		{"stolen", oldRedirect},
		{"stolen with a spare", func(t *testing.T, g *Gate) { // a process died half way
			oldRedirect(t, g)
			d := g.vifs[0].Path.(*device)
			must(t, "add spare", d.tc.h.FilterAdd(d.filter(g.vifs[0].Current, sparePriority)))
		}},
		{"spare alone", func(t *testing.T, g *Gate) { // and a little later
			d := g.vifs[0].Path.(*device)
			must(t, "add spare", d.tc.h.FilterAdd(d.filter(g.vifs[0].Current, sparePriority)))
			must(t, "delete filter", d.tc.h.FilterDel(d.filter(g.vifs[0].Current, filterPriority)))
		}},
		{"with a spare", func(t *testing.T, g *Gate) { // and at the end
			d := g.vifs[0].Path.(*device)
			must(t, "add spare", d.tc.h.FilterAdd(d.filter(g.vifs[0].Current, sparePriority)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1)
			g := w.open(Options{})
			must(t, "seal 1", g.Seal(1))
			must(t, "release 1", g.Release(1))
			must(t, "seal 2", g.Seal(2))
			c.leave(t, g)
			l := startLoad(t, 3, 1)
			time.Sleep(10 * time.Millisecond)
			crash(g)
			g = w.open(Options{drop: 1 << 30})
			time.Sleep(10 * time.Millisecond)
			if holding, adopted := g.Holding(); !holding || !adopted {
				t.Errorf("holding %v, adopted %v", holding, adopted)
			}
			if n := w.count(); n > 0 {
				t.Errorf("%d frames left a gate that holds", n)
			}
			if _, err := g.Stats(); err != nil {
				t.Error(err)
			}
			d := g.vifs[0].Path.(*device)
			if fs := ourFilters(t, d); len(fs) != 1 || !d.redirects(fs[0]) {
				t.Errorf("redirects: %+v", fs)
			}
			resume, _ := l.quiesce()
			must(t, "release all", g.ReleaseAll())
			must(t, "seal", g.Seal(1))
			resume()
			time.Sleep(5 * time.Millisecond)
			resume, _ = l.quiesce()
			must(t, "release", g.Release(1))
			must(t, "seal", g.Seal(2))
			resume()
			must(t, "release all", g.ReleaseAll())
			l.complete(t, l.end(w))
			must(t, "close", g.Close())
			nothingLeft(t)
		})
	}
}

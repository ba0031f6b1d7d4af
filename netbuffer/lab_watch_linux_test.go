//go:build lab

package netbuffer

import (
	"errors"
	"flag"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var watchEpochs = flag.Uint64("watch.epochs", 80, "epochs of TestLabWatchMissesNothing")

// watched builds the world with a gate that is watched in this way, and keeps the
// kernel from sending anything itself.
func watched(t *testing.T, way Way, vifs int) (*world, *Gate) {
	t.Helper()
	w := newWorld(t, vifs)
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	flush()
	return w, openWatched(t, w, way)
}

func openWatched(t *testing.T, w *world, way Way) *Gate {
	t.Helper()
	g := w.open(Options{Watch: way})
	if got, why := g.Watching(); got != way || why != nil {
		t.Fatalf("watching by %s: %v, want %s", got, why, way)
	}
	return g
}

// TestLabWatch: a gate with a plug has its events in each way: of vifs that come
// and go, after ReleaseAll, and when the next process takes it over.
func TestLabWatch(t *testing.T) {
	for _, way := range []Way{EBPF, PacketSocket, Polling} {
		t.Run(string(way), func(t *testing.T) {
			goroutines, fds := runtime.NumGoroutine(), openFiles(t)
			w, g := watched(t, way, 2)
			u := []*guest{newGuest(t, 0, 1), newGuest(t, 1, 2)}
			epoch := func(e uint64, from *guest) {
				t.Helper()
				must(t, "seal", g.Seal(e))
				if within(t, g, still) {
					t.Errorf("epoch %d: an event without a packet", e)
				}
				from.burst(e, 6)
				flush()
				if way == Polling {
					_, _, err := g.Held()
					must(t, "held", err)
				}
				if !within(t, g, patience) {
					t.Errorf("epoch %d: no event", e)
				}
				from.burst(e, 6)
				flush()
				must(t, "release", g.Release(e))
				if within(t, g, still) {
					t.Errorf("epoch %d: a second event", e)
				}
			}
			u[0].burst(0, 6)
			if within(t, g, still) {
				t.Error("an event before the first seal")
			}
			epoch(1, u[0])
			epoch(2, u[1])
			epoch(3, u[1])

			w.plugIn("vif901.2", "guest2")
			if _, err := g.AddVifs(); err != nil {
				t.Fatal(err)
			}
			if got, why := g.Watching(); got != way || why != nil {
				t.Errorf("watching by %s: %v", got, why)
			}
			u = append(u, newGuest(t, 2, 3))
			must(t, "seal 4", g.Seal(4))
			must(t, "release 4", g.Release(4))
			w.plugIn("vif901.3", "guest3") // its first packets come into an epoch under way
			if _, err := g.AddVifs(); err != nil {
				t.Fatal(err)
			}
			late := newGuest(t, 3, 4)
			late.burst(4, 3)
			flush()
			if way == Polling {
				_, _, err := g.Held()
				must(t, "held", err)
			}
			if !within(t, g, patience) {
				t.Error("no event of a vif that came in the epoch")
			}
			epoch(5, u[2])
			must(t, "remove vif", netlink.LinkDel(mustLink(t, "vif901.3")))
			epoch(6, u[0])

			crash(g)
			g = openWatched(t, w, way)
			u[0].burst(7, 6)
			if within(t, g, still) {
				t.Error("an event of an adopted gate")
			}
			must(t, "release all", g.ReleaseAll())
			epoch(1, u[0])
			epoch(2, u[1])
			must(t, "release all", g.ReleaseAll())
			u[0].burst(0, 6)
			if within(t, g, still) {
				t.Error("an event of an open gate")
			}
			epoch(1, u[2])
			must(t, "close", g.Close())
			nothingLeft(t)
			// The world's own socket, goroutine and the guests' sockets stay.
			if n := openFiles(t) - 2 - len(u); n > fds+1 {
				t.Errorf("%d files open, %d before", n, fds)
			}
			if n := runtime.NumGoroutine(); n > goroutines+1 {
				t.Errorf("%d goroutines, %d before", n, goroutines)
			}
		})
	}
}

// TestLabWatchRemoved: if another program removes ours, the looks that are taken anyway find
// the packets, and the gate holds them.
func TestLabWatchRemoved(t *testing.T) {
	w, g := watched(t, EBPF, 1)
	u := newGuest(t, 0, 1)
	must(t, "seal 1", g.Seal(1))
	for _, ifb := range g.host.(*kernel).all[g.vifs[0]].ifb {
		must(t, "remove program", netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifb.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		}}))
	}
	u.burst(2, 6)
	if within(t, g, still) {
		t.Error("an event without a program")
	}
	_, _, err := g.Held()
	must(t, "held", err)
	if !within(t, g, patience) {
		t.Error("no event")
	}
	if got := w.wait(0); len(got) > 0 {
		t.Errorf("%d packets were not held", len(got))
	}
	must(t, "release all", g.ReleaseAll())
	inOrder(t, "released", w.wait(6), 0, 6)
	must(t, "close", g.Close())
	nothingLeft(t)
}

// TestLabWatchEarlierGate: of a gate that holds and has no place for a program,
// made by an earlier version, nothing is lost for one.
func TestLabWatchEarlierGate(t *testing.T) {
	w, g := watched(t, EBPF, 1)
	for _, ifb := range g.host.(*kernel).all[g.vifs[0]].ifb {
		must(t, "remove clsact", netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifb.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}}))
	}
	u := newGuest(t, 0, 1)
	crashHolding(t, g, u, 20)
	g = w.open(Options{})
	if way, why := g.Watching(); way != PacketSocket || why == nil {
		t.Errorf("watching by %s: %v", way, why)
	} else {
		t.Log(why)
	}
	must(t, "release all", g.ReleaseAll())
	inOrder(t, "released", w.wait(40), 0, 40)
	must(t, "close", g.Close())
	nothingLeft(t)
}

// TestLabWatchMissesNothing is TestTapMissesNothing with a plug.
func TestLabWatchMissesNothing(t *testing.T) {
	for _, way := range []Way{EBPF, PacketSocket, Polling} {
		t.Run(string(way), func(t *testing.T) {
			_, g := watched(t, way, 2)
			missesNothing(t, g, way, map[Way]uint64{EBPF: *watchEpochs, PacketSocket: *watchEpochs / 4, Polling: *watchEpochs / 10}[way])
			must(t, "close", g.Close())
			nothingLeft(t)
		})
	}
}

// TestLabWatchCost says how long a packet takes to its event, and what watching
// adds to Seal.
func TestLabWatchCost(t *testing.T) {
	const n = 60
	for _, way := range []Way{EBPF, PacketSocket, Polling} {
		t.Run(string(way), func(t *testing.T) {
			w, g := watched(t, way, 1)
			u := newGuest(t, 0, 1)
			must(t, "seal", errors.Join(g.Seal(1), g.Release(1)))
			var seal, event []time.Duration
			for e := uint64(2); e < n+2; e++ {
				start := time.Now()
				must(t, "seal", g.Seal(e))
				seal = append(seal, time.Since(start))
				time.Sleep(time.Millisecond)
				start = time.Now()
				u.send(e)
				if way != Polling && !within(t, g, patience) {
					t.Error("no event")
				}
				event = append(event, time.Since(start))
				must(t, "release", g.Release(e))
			}
			slices.Sort(seal)
			slices.Sort(event)
			t.Logf("%d epochs, median and 95 of 100: seal %v, %v", n, seal[n/2], seal[n*95/100])
			if way != Polling {
				t.Logf("packet to event %v, %v", event[n/2], event[n*95/100])
			}
			must(t, "close", g.Close())
			w.take()
		})
	}
}

package netbuffer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A bench is a vif's path without a plug, for kernels that have none: the switch,
// the ifbs and the taps are real, and the queues hold nothing. Queues count what
// came since they last held.
type bench struct {
	*device
	since [2]uint64
}

func (b *bench) Change(queue int, a Action) (err error) {
	if a == Hold {
		b.since[queue], err = b.came(queue)
	}
	return err
}

func (b *bench) Empty(queue int) (bool, error) { return true, nil }

func (b *bench) State(queue int) (st QueueState, err error) {
	n, err := b.came(queue)
	return QueueState{Packets: n - b.since[queue]}, err
}

// came returns how many packets came into a queue, ever.
func (b *bench) came(queue int) (uint64, error) {
	l, err := b.tc.h.LinkByIndex(b.ifb[queue].Attrs().Index)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Statistics.RxPackets, nil
}

// newBench makes a vif with two ifbs and a tap of this way in the test's network
// namespace; "" means none. It skips where the kernel does not allow that way.
func newBench(t testing.TB, c *tc, ts *taps, name, peer string) *bench {
	t.Helper()
	pair(t, name, peer)
	d := &device{tc: c, vif: mustLink(t, name)}
	for i := range d.ifb {
		ifb, err := c.makeIfb(suffix("x"+name, i), 1500)
		if err == nil {
			err = c.h.LinkSetUp(ifb)
		}
		if errors.Is(err, ErrUnsupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		d.ifb[i] = ifb
	}
	must(t, "clsact", d.addQdisc())
	d.action = uint32(actionIndex | d.ifb[0].Attrs().Index)
	must(t, "redirect", c.h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: d.vif.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Index: int(d.action), Action: netlink.TC_ACT_PIPE},
			MirredAction: netlink.TCA_EGRESS_REDIR,
			Ifindex:      d.ifb[0].Attrs().Index,
		}},
	}))
	if ts != nil {
		d.listen(ts)
		if way, why := d.Watching(); way != ts.best {
			if errors.Is(why, ErrUnsupported) || errors.Is(why, unix.EPERM) || errors.Is(why, unix.ENOSYS) {
				t.Skip(why)
			}
			t.Fatalf("watching by %s: %v", way, why)
		}
	}
	return &bench{device: d}
}

// benchOf moves the test into a network namespace with the gate of some vifs.
func benchOf(t testing.TB, best Way, vifs int) (g *Gate, bs []*bench) {
	t.Helper()
	inNamespace(t)
	// The kernel itself sends nothing on the interfaces then.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	c, err := newTC()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	var ts *taps
	if best != "" {
		ts = newTaps(best)
	}
	var all []Vif
	for i := range vifs {
		b := newBench(t, c, ts, fmt.Sprintf("vif901.%d", i), fmt.Sprintf("guest%d", i))
		bs = append(bs, b)
		all = append(all, Vif{Name: b.vif.Attrs().Name, Path: b})
	}
	if ts != nil {
		t.Cleanup(func() {
			for _, b := range bs {
				b.unlisten()
			}
			ts.close()
		})
	}
	return New(Options{}, all...), bs
}

func mustLink(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// within waits for an event.
func within(t testing.TB, g *Gate, d time.Duration) bool {
	t.Helper()
	select {
	case <-g.Events():
		return true
	default:
	}
	select {
	case <-g.Events():
		return true
	case <-time.After(d):
		return false
	}
}

// still is how long no event must come. patience is the time in which one must, on a
// loaded or emulated host.
const (
	still    = 50 * time.Millisecond
	patience = 5 * time.Second
)

var seeing = []Way{EBPF, PacketSocket}

// TestTap: the first packet of a queue has an event, more have none.
func TestTap(t *testing.T) {
	for _, way := range seeing {
		t.Run(string(way), func(t *testing.T) {
			g, _ := benchOf(t, way, 2)
			if got, why := g.Watching(); got != way || why != nil {
				t.Errorf("watching: %q, %v", got, why)
			}
			out := []*sender{newSender(t, "guest0"), newSender(t, "guest1")}
			out[0].send()
			if within(t, g, still) {
				t.Error("an event before the first seal")
			}
			for e := uint64(1); e <= 6; e++ {
				must(t, "seal", g.Seal(e))
				if within(t, g, still) {
					t.Error("an event without a packet")
				}
				first := int(e % 2)
				out[first].send()
				if !within(t, g, patience) {
					t.Errorf("epoch %d: no event", e)
				}
				for range 5 {
					out[first].send()
					out[1-first].send()
				}
				if within(t, g, still) {
					t.Errorf("epoch %d: an event for a later packet", e)
				}
				must(t, "release", g.Release(e))
				if within(t, g, still) {
					t.Errorf("epoch %d: an event at the release", e)
				}
			}
			must(t, "release all", g.ReleaseAll())
			out[0].send()
			if within(t, g, still) {
				t.Error("an event of an open gate")
			}
			must(t, "seal anew", g.Seal(1))
			out[1].send()
			if !within(t, g, patience) {
				t.Error("no event after the seal anew")
			}
		})
	}
}

// TestProgramSeesOneQueue: the program of a queue that is watched says nothing of
// packets that the other queue gets, and has one record for many packets.
func TestProgramSeesOneQueue(t *testing.T) {
	_, bs := benchOf(t, EBPF, 1)
	out := newSender(t, "guest0")
	var calls atomic.Int32
	bs[0].Watch(1, func() { calls.Add(1) })
	for range 10 {
		out.send()
	}
	time.Sleep(still)
	if n := calls.Load(); n != 0 {
		t.Errorf("%d calls for packets of the other queue", n)
	}
	must(t, "steer", bs[0].Steer(1))
	for range 10 {
		out.send()
	}
	for end := time.Now().Add(patience); calls.Load() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(still)
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls for 10 packets, want 1", n)
	}
}

// TestTapMissesNothing: with senders that send while the gate seals, every epoch
// with packets has an event. Without eBPF the event may come at the release.
func TestTapMissesNothing(t *testing.T) {
	for _, way := range []Way{EBPF, PacketSocket, Polling} {
		t.Run(string(way), func(t *testing.T) {
			g, _ := benchOf(t, way, 2)
			missesNothing(t, g, way, map[Way]uint64{EBPF: 3000, PacketSocket: 1000, Polling: 200}[way])
		})
	}
}

// missesNothing runs epochs of a gate with two vifs.
func missesNothing(t *testing.T, g *Gate, way Way, epochs uint64) {
	t.Helper()
	if testing.Short() {
		epochs /= 10
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range 4 {
		out := newSender(t, fmt.Sprintf("guest%d", i%2))
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for ctx.Err() == nil {
				out.send()
				time.Sleep(time.Duration(rng.IntN(400)) * time.Microsecond)
			}
		})
	}
	with, missed, late := 0, 0, 0
	rng := rand.New(rand.NewPCG(9, 9))
	for e := uint64(1); e <= epochs; e++ {
		must(t, "seal", g.Seal(e))
		time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
		var packets uint64
		for _, v := range g.vifs {
			st, err := v.Path.State(v.Current)
			must(t, "state", err)
			packets += st.Packets
		}
		wait := patience
		if way != EBPF {
			wait = 2 * time.Millisecond
		}
		got := packets > 0 && within(t, g, wait)
		must(t, "release", g.Release(e))
		if packets == 0 {
			continue
		}
		with++
		if !got {
			late++
			if way == EBPF || !within(t, g, 0) {
				missed++
			}
		}
	}
	if missed > 0 || with < int(epochs)/10 {
		t.Errorf("%d of %d epochs had packets, and %d no event", with, epochs, missed)
	}
	t.Logf("%d of %d epochs had packets; %d events only at the release", with, epochs, late)
}

// TestTapFallsBack: what does not work is replaced by the next best, and said.
func TestTapFallsBack(t *testing.T) {
	g, bs := benchOf(t, EBPF, 1)
	b := bs[0]
	out := newSender(t, "guest0")
	event := func(e uint64, want Way, words ...string) {
		t.Helper()
		must(t, "seal", g.Seal(e))
		out.send()
		if got := within(t, g, patience); !got {
			t.Errorf("no event by %s", want)
		}
		must(t, "release", g.Release(e))
		way, why := g.Watching()
		if way != want || (why != nil) != (len(words) > 0) {
			t.Errorf("watching by %s: %v, want %s", way, why, want)
		}
		for _, w := range words {
			if why != nil && !strings.Contains(why.Error(), w) {
				t.Errorf("%v: lacks %q", why, w)
			}
		}
	}
	event(1, EBPF)
	b.tap.(*programTap).ring.r.Close()
	event(2, PacketSocket, "no eBPF")
	b.tap.(*socketTap).file.Close()
	must(t, "seal", g.Seal(3))
	out.send()
	time.Sleep(still)
	must(t, "release", g.Release(3))
	if !within(t, g, 0) {
		t.Error("no event by polling")
	}
	if way, why := g.Watching(); way != Polling || why == nil || !strings.Contains(why.Error(), "no packet socket") {
		t.Errorf("watching by %s: %v", way, why)
	}
}

// TestTapWithoutRights: what the process may not do is replaced, and said.
func TestTapWithoutRights(t *testing.T) {
	_, bs := benchOf(t, "", 1)
	for _, c := range []struct {
		drop []uintptr
		want Way
	}{
		{[]uintptr{unix.CAP_SYS_ADMIN, unix.CAP_BPF}, PacketSocket},
		{[]uintptr{unix.CAP_NET_RAW}, Polling},
	} {
		dropRights(t, c.drop...)
		d := *bs[0].device
		ts := newTaps(EBPF)
		d.listen(ts)
		way, why := d.Watching()
		if way != c.want || !errors.Is(why, unix.EPERM) {
			t.Errorf("watching by %s: %v, want %s", way, why, c.want)
		}
		t.Log(why)
		d.Watch(0, func() {})
		d.unlisten()
		ts.close()
	}
}

// dropRights takes capabilities from the test's thread, which ends with the test.
func dropRights(t *testing.T, caps ...uintptr) {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, "capget", unix.Capget(&hdr, &data[0]))
	for _, c := range caps {
		data[c/32].Effective &^= 1 << (c % 32)
	}
	must(t, "capset", unix.Capset(&hdr, &data[0]))
}

// TestTapOfEarlierProcess: a program that a killed process left is replaced.
func TestTapOfEarlierProcess(t *testing.T) {
	g, bs := benchOf(t, EBPF, 1)
	b := bs[0]
	out := newSender(t, "guest0")
	must(t, "seal", g.Seal(1))
	for round := range 3 {
		b.unlisten() // the program stays, armed
		b.listen(newTaps(EBPF))
		t.Cleanup(b.taps.close)
		g = New(Options{}, Vif{Name: "vif901.0", Path: b, Current: 1})
		must(t, "seal", errors.Join(b.Steer(1), g.Seal(1)))
		out.send()
		if !within(t, g, patience) {
			t.Errorf("round %d: no event", round)
		}
		for i, ifb := range b.ifb {
			fs, err := b.tc.h.FilterList(ifb, netlink.HANDLE_MIN_EGRESS)
			must(t, "filters", err)
			fs = slices.DeleteFunc(fs, func(f netlink.Filter) bool { return f.Attrs().Handle == 0 })
			if len(fs) != 1 {
				t.Errorf("round %d: ifb %d has %d filters", round, i, len(fs))
			}
		}
	}
}

// TestTapCloses: nothing is left of a tap in this process.
func TestTapCloses(t *testing.T) {
	for _, way := range seeing {
		t.Run(string(way), func(t *testing.T) {
			_, bs := benchOf(t, way, 2)
			goroutines, fds := runtime.NumGoroutine(), openFiles(t)
			for range 10 {
				ts := newTaps(way)
				var ds []*device
				for _, b := range bs {
					d := *b.device
					d.listen(ts)
					if got, why := d.Watching(); got != way {
						t.Fatalf("watching by %s: %v", got, why)
					}
					d.Watch(0, func() {})
					ds = append(ds, &d)
				}
				for _, d := range ds {
					d.unlisten()
				}
				ts.close()
			}
			if n := openFiles(t); n > fds {
				t.Errorf("%d files open, %d before", n, fds)
			}
			if n := runtime.NumGoroutine(); n > goroutines {
				t.Errorf("%d goroutines, %d before", n, goroutines)
			}
		})
	}
}

// TestTapOfVanishedVif: it is in nobody's way.
func TestTapOfVanishedVif(t *testing.T) {
	for _, way := range seeing {
		t.Run(string(way), func(t *testing.T) {
			g, bs := benchOf(t, way, 2)
			must(t, "seal 1", errors.Join(g.Seal(1), g.Release(1)))
			must(t, "delete vif", netlink.LinkDel(bs[0].vif))
			bs[0].device.vif = nil
			out := newSender(t, "guest1")
			for e := uint64(2); e < 6; e++ {
				must(t, "seal", g.Seal(e))
				if within(t, g, still) {
					t.Error("an event without a packet")
				}
				out.send()
				if !within(t, g, patience) {
					t.Error("no event of the other vif")
				}
				must(t, "release", g.Release(e))
			}
			if got, why := g.Watching(); got != way || why != nil {
				t.Errorf("watching by %s: %v", got, why)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fs, err := os.ReadDir("/proc/self/fd")
	must(t, "open files", err)
	return len(fs)
}

// A sender sends a frame on an interface, as a domain does.
type sender struct {
	t  testing.TB
	fd int
}

func newSender(t testing.TB, name string) *sender {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, "socket", err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, "bind", unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: mustLink(t, name).Attrs().Index}))
	return &sender{t, fd}
}

var testFrame = append([]byte{2, 0, 0, 0, 0xff, 1, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, make([]byte, 80)...)

func (s *sender) send() {
	for {
		_, err := unix.Write(s.fd, testFrame)
		if err == nil {
			return
		}
		if err != unix.ENOBUFS && err != unix.EAGAIN && err != unix.EINTR {
			s.t.Errorf("send: %v", err)
			return
		}
	}
}

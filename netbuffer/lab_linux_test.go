//go:build lab

package netbuffer

// These tests need root and a kernel with ifb, sch_plug, sch_ingress,
// cls_matchall, act_mirred, veth and bridge: a dom0's. Build them with
// "go test -c -tags lab" and run the binary there. Each runs in a network
// namespace of its own:
//
//	guest0 <-veth-> vif901.0 -- bridge -- out0
//
// Frames sent on guest0 are the domain's output; what leaves is what out0
// transmits. Behind a veth each CPU has a backlog of its own, in which frames
// overtake each other with a gate or without; so senders stay on one CPU, and
// what leaves is looked at before it goes over out0's veth.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const domid = 901

func TestMain(m *testing.M) {
	// The per-CPU backlog between the ends of a veth pair must not be what
	// loses packets here.
	_ = os.WriteFile("/proc/sys/net/core/netdev_max_backlog", []byte("1000000"), 0)
	os.Exit(m.Run())
}

// frame kinds: all ethertypes that a domain may send.
var kinds = []struct {
	name   string
	header []byte // behind the addresses
}{
	{"IPv4", []byte{0x08, 0x00}},
	{"IPv6", []byte{0x86, 0xdd}},
	{"ARP", []byte{0x08, 0x06}},
	{"VLAN", []byte{0x81, 0x00, 0x00, 0x64, 0x08, 0x00}},
	{"QinQ", []byte{0x88, 0xa8, 0x00, 0x64, 0x81, 0x00, 0x00, 0x65, 0x86, 0xdd}},
	{"Other", []byte{0x88, 0xb5}},
}

var magic = []byte("xlft-lab")

// A seen frame is one of ours that left.
type seen struct {
	sender byte
	epoch  uint64
	n      uint32
	at     time.Time // by the kernel, when it left
}

// frame: addresses, type, magic, sender, epoch, number, filling.
func frame(sender byte, kind int, epoch uint64, n uint32) []byte {
	b := []byte{0x02, 0, 0, 0, 0xff, 1, 0x02, 0, 0, 0, 0, sender}
	b = append(b, kinds[kind].header...)
	b = append(b, magic...)
	b = append(b, sender)
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = binary.BigEndian.AppendUint32(b, n)
	return append(b, make([]byte, 80)...)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// packetSocket opens AF_PACKET on a link.
func packetSocket(t *testing.T, name string, proto uint16) int {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(proto)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// A world is the network behind the gate.
type world struct {
	t  *testing.T
	mu sync.Mutex
	in []seen
}

func (w *world) take() []seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.in
	w.in = nil
	return s
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.in)
}

// wait waits for n frames and returns them, or what came in two seconds.
func (w *world) wait(n int) []seen {
	for end := time.Now().Add(2 * time.Second); w.count() < n && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(30 * time.Millisecond) // more than n would be wrong too
	return w.take()
}

// listen starts to receive on link.
func (w *world) listen(link string) {
	t := w.t
	fd := packetSocket(t, link, unix.ETH_P_ALL)
	for _, err := range []error{
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 128<<20),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	t.Cleanup(func() { stop.Store(true); wg.Wait() })
	wg.Go(func() {
		buf, oob := make([]byte, 2048), make([]byte, 256)
		for !stop.Load() {
			n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, 0)
			if err != nil {
				continue
			}
			if sa, ok := from.(*unix.SockaddrLinklayer); !ok || sa.Pkttype != unix.PACKET_OUTGOING {
				continue
			}
			i := bytes.Index(buf[:n], magic)
			if i < 0 {
				continue // the kernel's own chatter
			}
			b := buf[i+len(magic) : n]
			s := seen{b[0], binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint32(b[9:]), stamp(oob[:oobn])}
			w.mu.Lock()
			w.in = append(w.in, s)
			w.mu.Unlock()
		}
	})
}

func stamp(oob []byte) time.Time {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS {
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return time.Unix(ts.Unix())
		}
	}
	return time.Time{}
}

// newWorld builds the network of the comment above with the given vifs.
func newWorld(t *testing.T, vifs int) *world {
	t.Helper()
	if err := Check(t.Context()); err != nil {
		t.Skip(err)
	}
	inNamespace(t)
	la := netlink.NewLinkAttrs()
	la.Name = "br0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil {
		t.Fatal(err)
	}
	br, err := netlink.LinkByName("br0")
	if err == nil {
		err = netlink.LinkSetUp(br)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	w.plugIn("out0", "world")
	for i := range vifs {
		w.plugIn(fmt.Sprintf("vif%d.%d", domid, i), fmt.Sprintf("guest%d", i))
	}
	w.listen("out0")
	return w
}

// plugIn makes a veth pair with one end in the bridge.
func (w *world) plugIn(port, peer string) {
	w.t.Helper()
	pair(w.t, port, peer)
	p, err := netlink.LinkByName(port)
	if err == nil {
		var br netlink.Link
		if br, err = netlink.LinkByName("br0"); err == nil {
			err = netlink.LinkSetMaster(p, br)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open(opts Options) *Gate {
	w.t.Helper()
	g, err := Open(domid, opts)
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

// A guest sends frames from one sender.
type guest struct {
	t      *testing.T
	fd     int
	sender byte
	n      uint32
}

func newGuest(t *testing.T, vif int, sender byte) *guest {
	fd := packetSocket(t, fmt.Sprintf("guest%d", vif), 0)
	// Frames that the gate holds stay charged to the socket.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 256<<20); err != nil {
		t.Fatal(err)
	}
	return &guest{t: t, fd: fd, sender: sender}
}

// send sends one frame of the next kind.
func (g *guest) send(epoch uint64) {
	f := frame(g.sender, int(g.n)%len(kinds), epoch, g.n)
	for {
		_, err := unix.Write(g.fd, f)
		if err == nil {
			break
		}
		if err != unix.ENOBUFS && err != unix.EAGAIN && err != unix.EINTR {
			g.t.Errorf("send: %v", err)
			return
		}
	}
	g.n++
}

func (g *guest) burst(epoch uint64, n int) {
	for range n {
		g.send(epoch)
	}
}

// flush waits until what was sent has come to the vif, most likely: an
// overloaded kernel leaves it in a backlog for a while.
func flush() { time.Sleep(20 * time.Millisecond) }

// inOrder checks that frames are from..to-1 of one sender.
func inOrder(t *testing.T, what string, got []seen, from, to uint32) {
	t.Helper()
	if len(got) != int(to-from) {
		t.Errorf("%s: %d frames came out, want %d", what, len(got), to-from)
	}
	for i, s := range got {
		if s.n != from+uint32(i) {
			t.Errorf("%s: frame %d has number %d, want %d", what, i, s.n, from+uint32(i))
			return
		}
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// own is how many frames the sender's kernel may add of its own, such as
// neighbour solicitations.
const own = 4

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
	must(t, "abandon", g.Abandon())
	inOrder(t, "abandoned", w.wait(24), 90, 114)
	u.burst(5, 12)
	flush()
	inOrder(t, "after abandon", w.wait(12), 114, 126)

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

// nothingLeft: no ifb, no qdisc of ours.
func nothingLeft(t *testing.T) {
	t.Helper()
	if ids, err := Stale(); err != nil || len(ids) > 0 {
		t.Errorf("gates left: %v, %v", ids, err)
	}
	vif, err := netlink.LinkByName("vif901.0")
	if err != nil {
		t.Fatal(err)
	}
	qs, err := netlink.QdiscList(vif)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range qs {
		if q.Attrs().Parent == netlink.HANDLE_INGRESS {
			t.Errorf("%s left on the vif", q.Type())
		}
	}
}

// A load is several senders at full speed that can be stopped between frames,
// like a domain that is suspended.
type load struct {
	gate  sync.RWMutex // held for writing while the domain is suspended
	epoch atomic.Uint64
	stop  atomic.Bool
	wg    sync.WaitGroup
	all   []*guest
}

func startLoad(t *testing.T, senders, vifs int) *load {
	l := &load{}
	for i := range senders {
		u := newGuest(t, i%vifs, byte(i))
		l.all = append(l.all, u)
		l.wg.Go(func() {
			runtime.LockOSThread() // and let the thread end here
			var cpu unix.CPUSet
			cpu.Set(i % runtime.NumCPU())
			if err := unix.SchedSetaffinity(0, &cpu); err != nil {
				t.Error(err)
			}
			for !l.stop.Load() {
				l.gate.RLock()
				u.burst(l.epoch.Load(), 8)
				l.gate.RUnlock()
			}
		})
	}
	return l
}

func (l *load) quiesce() (func(), error) {
	l.gate.Lock()
	return l.gate.Unlock, nil
}

// end stops the senders and returns what came out, once that is all they sent or nothing more comes: a busy host looks at
// it long after it has left.
func (l *load) end(w *world) (got []seen) {
	l.stop.Store(true)
	l.wg.Wait()
	sent := 0
	for _, u := range l.all {
		sent += int(u.n)
	}
	for last, since := 0, time.Now(); last < sent && time.Since(since) < 3*time.Second; time.Sleep(5 * time.Millisecond) {
		if n := w.count(); n > last {
			last, since = n, time.Now()
		}
	}
	return w.take()
}

// complete checks that all that was sent came out, each sender's frames in order.
func (l *load) complete(t *testing.T, got []seen) {
	t.Helper()
	next := map[byte]uint32{}
	for i, s := range got {
		if want := next[s.sender]; s.n != want {
			j := slices.IndexFunc(got, func(o seen) bool { return o.sender == s.sender && o.n == want })
			if j < 0 {
				t.Errorf("sender %d: got frame %d, want %d, which never came", s.sender, s.n, want)
			} else {
				t.Errorf("sender %d: got frame %d at %v, want %d, which came %d frames and %v later", s.sender, s.n, s.at, want, j-i, got[j].at.Sub(s.at))
			}
			return
		}
		next[s.sender]++
	}
	for _, u := range l.all {
		if next[u.sender] != u.n {
			t.Errorf("sender %d: %d of %d frames came out", u.sender, next[u.sender], u.n)
		}
	}
}

// TestLabOpenAndCloseUnderLoad: building and removing the gate loses and
// reorders nothing, also if it holds when Close comes.
func TestLabOpenAndCloseUnderLoad(t *testing.T) {
	w := newWorld(t, 1)
	l := startLoad(t, 3, 1)
	for round := range 12 {
		time.Sleep(10 * time.Millisecond)
		g := w.open(Options{Quiesce: l.quiesce})
		time.Sleep(10 * time.Millisecond)
		if round%3 > 0 {
			resume, _ := l.quiesce()
			must(t, "seal", g.Seal(1))
			resume()
			time.Sleep(20 * time.Millisecond)
		}
		if round%3 > 1 {
			resume, _ := l.quiesce()
			must(t, "release", g.Release(1))
			must(t, "seal", g.Seal(2))
			resume()
			time.Sleep(5 * time.Millisecond)
		}
		must(t, "close", g.Close())
	}
	got := l.end(w)
	l.complete(t, got)
	t.Logf("%d frames through 12 gates", len(got))
	nothingLeft(t)
}

// TestLabEpochsUnderLoad: with senders at full speed nothing leaves before its
// epoch is released, by the kernel's own time stamps.
func TestLabEpochsUnderLoad(t *testing.T) {
	const epochs, vifs = 100, 2
	w := newWorld(t, vifs)
	g := w.open(Options{})
	l := startLoad(t, 4, vifs)
	resume, _ := l.quiesce()
	l.epoch.Store(1)
	resume()

	released := make([]time.Time, epochs+2)
	var sealing time.Duration
	for e := uint64(1); e <= epochs; e++ {
		time.Sleep(3 * time.Millisecond)
		resume, _ := l.quiesce()
		start := time.Now()
		must(t, "seal", g.Seal(e))
		sealing += time.Since(start)
		l.epoch.Store(e + 1)
		resume()
		time.Sleep(2 * time.Millisecond) // the way to the backup and back
		released[e] = time.Now()
		must(t, "release", g.Release(e))
	}
	s, err := g.Stats()
	if err != nil || s.Drops > 0 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	released[epochs+1] = time.Now()
	must(t, "abandon", g.Abandon())
	got := l.end(w)
	early, perEpoch := 0, map[uint64]int{}
	for _, s := range got {
		perEpoch[s.epoch]++
		if s.epoch > 1 && s.at.Before(released[s.epoch]) {
			if early++; early <= 20 {
				t.Logf("sender %d, frame %d of epoch %d came %v early", s.sender, s.n, s.epoch, released[s.epoch].Sub(s.at))
			}
		}
	}
	if early > 0 {
		t.Errorf("%d frames left before their epoch was released", early)
	}
	if len(perEpoch) < epochs/2 {
		t.Errorf("only %d epochs had output", len(perEpoch))
	}
	l.complete(t, got)
	t.Logf("%d frames in %d epochs over %d vifs; a seal took %v on average", len(got), len(perEpoch), vifs, sealing/epochs)
	must(t, "close", g.Close())
}

// crash forgets a gate as a killed process would.
func crash(g *Gate) { g.host.close() }

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

	must(t, "seal 1", g.Seal(1))
	u.burst(2, 10)
	flush()
	must(t, "release 1", g.Release(1))
	must(t, "seal 2", g.Seal(2))
	u.burst(3, 10)
	flush()
	crash(g) // one epoch sealed, one running
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
	must(t, "abandon", g.Abandon())
	inOrder(t, "abandoned", w.wait(24), 12, 36)
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
	names, err := g.Extend()
	if err != nil || !slices.Equal(names, []string{"vif901.1"}) {
		t.Fatalf("extend: %v, %v", names, err)
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

func TestLabLimit(t *testing.T) {
	w := newWorld(t, 1)
	u := newGuest(t, 0, 1)
	g := w.open(Options{Limit: 5000})
	must(t, "seal 1", g.Seal(1))
	u.burst(2, 100)
	flush()
	s, err := g.Stats()
	if err != nil || s.Drops == 0 || s.Bytes > 5000 || s.Packets+s.Drops < 100 || s.Packets+s.Drops > 100+own || s.Fullest < 0.9 {
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

func mustLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLabBypassIsNoticed(t *testing.T) {
	w := newWorld(t, 1)
	g := w.open(Options{})
	must(t, "seal", g.Seal(1))
	if _, err := g.Stats(); err != nil {
		t.Fatal(err)
	}
	must(t, "remove clsact", netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: mustLink(t, "vif901.0").Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}))
	if s, err := g.Stats(); !errors.Is(err, ErrBypassed) || len(s.Vifs) != 1 {
		t.Errorf("got %+v, %v, want ErrBypassed", s, err)
	}
	must(t, "close", g.Close())
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

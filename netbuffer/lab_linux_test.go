//go:build lab

package netbuffer

// These tests need root and a kernel with ifb, sch_plug, sch_ingress,
// cls_matchall, act_mirred, act_gact, veth and bridge: a dom0's. Build them
// with "go test -c -tags lab" and run the binary there. Each runs in a network
// namespace of its own:
//
//	guest0 <-veth-> vif901.0 -- bridge -- out0
//
// Frames sent on guest0 are the domain's output; the frames that out0 transmits
// have left. Behind a veth each CPU has a backlog of its own, in which frames
// overtake each other with a gate or without. So each sender stays on one CPU,
// and frames are seen before they go over out0's veth.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
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
	// The per-CPU backlog between the ends of a veth pair must lose no packets.
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

// A seen frame is a frame of a guest that left.
type seen struct {
	sender byte
	epoch  uint64
	n      uint32
	at     time.Time // by the kernel, when it left
}

// frame returns a frame: addresses, type, magic, sender, epoch, number,
// padding.
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

// wait waits for n frames, at most two seconds, and returns those that came.
func (w *world) wait(n int) []seen {
	for end := time.Now().Add(2 * time.Second); w.count() < n && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(30 * time.Millisecond) // more than n would be wrong too
	return w.take()
}

// listen starts to take in the frames that link transmits.
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

// flush waits until the sent frames have most likely arrived at the vif: an
// overloaded kernel leaves them in a backlog for a while.
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

// own is how many frames the sender's kernel may add, such as neighbour
// solicitations.
const own = 4

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

//go:build linux

package inbound

import (
	"bytes"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	guest  = net.HardwareAddr{0, 0x16, 0x3e, 0, 0, 1}
	client = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	all    = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// experimental is an EtherType for local experiments (IEEE 802): a bridge with netfilter drops what calls itself IP and is none.
const experimental = 0x88b5

// A lan is a bridge in a network namespace of the test's own thread: a cable with the world at its end, and, once it is
// plugged, a domain's device with the domain at its end.
type lan struct {
	t     *testing.T
	world int // packet socket at the end of the cable
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	runtime.LockOSThread() // kept: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no network namespace: ", err)
	}
	l := &lan{t: t}
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "xenbr0"}}))
	up(t, "xenbr0")
	l.cable("eth0", "world")
	up(t, "world")
	must(t, awaitCarrier("eth0", 5*time.Second)) // the bridge forwards now
	l.world = l.listen("world")
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func up(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(link))
}

// cable plugs a port into the bridge; the device at its other end is down.
func (l *lan) cable(port, end string) {
	l.t.Helper()
	must(l.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: end}))
	for _, name := range []string{port, end} {
		os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	}
	br, err := netlink.LinkByName("xenbr0")
	must(l.t, err)
	link, err := netlink.LinkByName(port)
	must(l.t, err)
	must(l.t, netlink.LinkSetMaster(link, br))
	up(l.t, port)
}

func (l *lan) listen(name string) int {
	l.t.Helper()
	ifi, err := net.InterfaceByName(name)
	must(l.t, err)
	const every = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, every)
	must(l.t, err)
	l.t.Cleanup(func() { unix.Close(fd) })
	must(l.t, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Protocol: every}))
	return fd
}

func frame(to, from net.HardwareAddr, etherType uint16, number byte) []byte {
	b := append(append([]byte(nil), to...), from...)
	b = append(b, byte(etherType>>8), byte(etherType), number)
	return append(b, make([]byte, 60-len(b))...)
}

func (l *lan) send(fd int, f []byte) {
	l.t.Helper()
	_, err := unix.Write(fd, f)
	must(l.t, err)
}

// hear returns the numbers of the client's frames that arrived at an end, and how often the guest was announced there, until
// it was silent for a moment.
func (l *lan) hear(fd int) (numbers []byte, announced int) {
	l.t.Helper()
	must(l.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}))
	for b := make([]byte, 2000); ; {
		n, from, err := unix.Recvfrom(fd, b, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return numbers, announced
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // it was down when the socket was bound
			continue
		}
		must(l.t, err)
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue // its own
		}
		switch {
		case n < 15:
		case bytes.Equal(b[6:12], client):
			numbers = append(numbers, b[14])
		case bytes.Equal(b[6:12], guest) && b[12] == 0x80 && b[13] == 0x35:
			announced++
		}
	}
}

// kept waits until so many frames are kept.
func kept(t *testing.T, g *Gap, n int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		g.mu.Lock()
		have := len(g.frames)
		g.mu.Unlock()
		if have == n {
			return
		}
	}
	t.Fatalf("%d frames are kept, want %d", len(g.frames), n)
}

// What arrives for the domain before its device works gets to the domain, in order, and to nobody else.
func TestGap(t *testing.T) {
	l := newLAN(t)
	g, err := Begin("xenbr0", guest)
	must(t, err)
	l.send(l.world, frame(guest, client, experimental, 1))
	l.send(l.world, frame(all, client, unix.ETH_P_ARP, 2))
	l.send(l.world, frame(all, client, experimental, 3))                                // a broadcast of something else
	l.send(l.world, frame(net.HardwareAddr{2, 0, 0, 0, 0, 7}, client, experimental, 4)) // somebody else's
	l.send(l.world, frame(guest, client, experimental, 5))
	kept(t, g, 3)

	l.cable("vif1.0", "domain")
	up(t, "domain")
	sock := l.listen("domain")
	must(t, awaitCarrier("vif1.0", 5*time.Second))
	l.send(sock, frame(client, guest, experimental, 0)) // the domain speaks first
	sent, lost, err := g.End("vif1.0", 5*time.Second)
	must(t, err)
	if sent != 3 || lost != 0 {
		t.Errorf("%d frames were sent, %d lost", sent, lost)
	}
	l.send(l.world, frame(guest, client, experimental, 6)) // the way is open
	if got, _ := l.hear(sock); !slices.Equal(got, []byte{1, 2, 5, 6}) {
		t.Errorf("the domain got %v", got)
	}
	if got, announced := l.hear(l.world); len(got) > 0 || announced != 1 {
		t.Errorf("the world got %v of its own, and was told %d times where the domain is", got, announced)
	}
	if _, err := net.InterfaceByName("xlft-in0"); err == nil {
		t.Error("the tap is left")
	}
	all, err := netlink.NeighList(0, unix.AF_BRIDGE)
	must(t, err)
	for _, n := range all {
		if n.HardwareAddr.String() == guest.String() && n.State&netlink.NUD_NOARP != 0 {
			t.Errorf("a static entry is left: %+v", n)
		}
	}
}

// A domain whose device never works: the way is not barred for longer.
func TestGapNoCarrier(t *testing.T) {
	l := newLAN(t)
	g, err := Begin("xenbr0", guest)
	must(t, err)
	l.cable("vif1.0", "domain") // stays down
	_, _, err = g.End("vif1.0", 50*time.Millisecond)
	if !errors.Is(err, ErrNoCarrier) {
		t.Errorf("the error is %v", err)
	}
	sock := l.listen("domain")
	up(t, "domain")
	must(t, awaitCarrier("vif1.0", 5*time.Second))
	l.send(l.world, frame(guest, client, experimental, 1))
	if got, _ := l.hear(sock); !slices.Equal(got, []byte{1}) {
		t.Errorf("the domain got %v", got)
	}
}

// The device comes to work while the frames wait.
func TestAwaitCarrier(t *testing.T) {
	l := newLAN(t)
	l.cable("vif1.0", "domain")
	link, err := netlink.LinkByName("domain")
	must(t, err)
	h, err := netlink.NewHandle() // of this namespace, for another thread
	must(t, err)
	defer h.Close()
	time.AfterFunc(50*time.Millisecond, func() { h.LinkSetUp(link) })
	must(t, awaitCarrier("vif1.0", 10*time.Second))
}

// What is kept is bounded.
func TestGapFull(t *testing.T) {
	l := newLAN(t)
	g, err := Begin("xenbr0", guest)
	must(t, err)
	g.mu.Lock()
	g.size = most - 100 // room for one
	g.mu.Unlock()
	for n := range byte(3) {
		l.send(l.world, frame(guest, client, experimental, n))
	}
	for end := time.Now().Add(5 * time.Second); g.missed() < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	l.cable("vif1.0", "domain")
	sock := l.listen("domain")
	up(t, "domain")
	if sent, lost, err := g.End("vif1.0", time.Second); err != nil || sent != 1 || lost != 2 {
		t.Errorf("%d sent, %d lost, %v", sent, lost, err)
	}
	if got, _ := l.hear(sock); !slices.Equal(got, []byte{0}) {
		t.Errorf("the domain got %v", got)
	}
}

func (g *Gap) missed() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lost
}

// Where no frame can be kept the address is announced all the same.
func TestNotABridge(t *testing.T) {
	l := newLAN(t)
	g, err := Begin("eth0", guest)
	if err == nil {
		t.Error("a cable is no bridge")
	}
	if sent, lost, err := g.End("vif1.0", time.Second); sent != 0 || lost != 0 || err != nil {
		t.Error(sent, lost, err)
	}
	if _, announced := l.hear(l.world); announced != 1 {
		t.Errorf("announced %d times", announced)
	}
	if _, err := Begin("nonexistent0", guest); err == nil {
		t.Error("began on no bridge")
	}
}

// Package inbound keeps the frames that arrive for a domain while this host takes it
// over: from the moment at which it is decided that the domain runs here, until the
// domain's network device works. Without that a client's retransmission falls into
// the gap, and the client's timer doubles before the next one.
//
// The way: a tap device joins the domain's bridge, and a static entry of the
// bridge's forwarding database leads the domain's address there. The domain is
// announced, so that switches outside send to this host. Once the domain's own device
// has its carrier, the frames go straight into it. The tap and its entry end with the
// process.
//
// The one rule a caller must know: nothing may be decided by what this package does.
// If it can't work, as on a bridge that is not the kernel's, frames get lost as before.
package inbound

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xlft/xlft/internal/announce"
)

// most is how many bytes of frames are kept for a device; what comes after them is
// lost, as in a queue that is full.
const most = 4 << 20

// Repeats are the times at which a domain that runs is announced again.
var Repeats = []time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second}

// A Gap is the time in which a domain runs nowhere, for one network device.
type Gap struct {
	mac    net.HardwareAddr
	bridge string
	tap    *os.File // nil: nothing is kept
	read   sync.WaitGroup

	mu     sync.Mutex
	frames [][]byte
	size   int
	lost   int
}

// Begin announces a device's address on a bridge, and keeps what arrives for it. An
// error says why nothing is kept, or that the address could not be announced; the Gap
// is good all the same.
func Begin(bridge string, mac net.HardwareAddr) (*Gap, error) {
	g := &Gap{mac: mac, bridge: bridge}
	err := g.open()
	return g, errors.Join(err, announce.Send(bridge, mac))
}

// open makes the tap and leads the address to it.
func (g *Gap) open() (err error) {
	master, err := netlink.LinkByName(g.bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", g.bridge, err)
	}
	if master.Type() != "bridge" {
		return fmt.Errorf("%s is a device of the kind %s: frames that arrive before the domain runs are lost", g.bridge, master.Type())
	}
	tap, name, err := newTap()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tap.Close()
		}
	}()
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("tap %s: %w", name, err)
	}
	// Nothing is learned here, and nothing that has another way comes here. Requests
	// of ARP do: broadcasts.
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"silence IPv6", func() error { return quiet(name) }},
		{"set up", func() error { return netlink.LinkSetUp(link) }},
		{"come to work", func() error { return awaitCarrier(name, time.Second) }}, // or the bridge forwards nothing to it yet
		{"join " + g.bridge, func() error { return netlink.LinkSetMaster(link, master) }},
		{"switch learning off", func() error { return netlink.LinkSetLearning(link, false) }},
		{"switch flooding off", func() error { return netlink.LinkSetFlood(link, false) }},
		{"lead " + g.mac.String() + " there", func() error {
			return netlink.NeighAppend(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: g.mac,
			})
		}},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("tap %s: %s: %w", name, step.what, err)
		}
	}
	g.tap = tap
	g.read.Go(g.keep)
	return nil
}

// quiet keeps the kernel from speaking through a device for itself.
func quiet(name string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // no IPv6 here
	}
	return err
}

// newTap makes a tap device that ends with the file.
func newTap() (*os.File, string, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", fmt.Errorf("/dev/net/tun: %w: is the kernel's module tun there?", err)
	}
	req, err := unix.NewIfreq("xlft-in%d")
	if err != nil {
		unix.Close(fd)
		return nil, "", err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, "", fmt.Errorf("make a tap device: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), req.Name(), nil
}

// keep reads the tap until it is closed.
func (g *Gap) keep() {
	b := make([]byte, 1<<16)
	for {
		n, err := g.tap.Read(b)
		if err != nil {
			return
		}
		if !g.ours(b[:n]) {
			continue
		}
		g.mu.Lock()
		if g.size+n <= most {
			g.frames, g.size = append(g.frames, append([]byte(nil), b[:n]...)), g.size+n
		} else {
			g.lost++
		}
		g.mu.Unlock()
	}
}

// ours reports whether a frame is for the device: sent to it, or a broadcast of ARP,
// which may ask for it.
func (g *Gap) ours(frame []byte) bool {
	const header = 14
	if len(frame) < header {
		return false
	}
	to, etherType := net.HardwareAddr(frame[:6]), uint16(frame[12])<<8|uint16(frame[13])
	return string(to) == string(g.mac) || to.String() == "ff:ff:ff:ff:ff:ff" && etherType == unix.ETH_P_ARP
}

// End waits until a device has its carrier, for so long at the most, sends the kept
// frames into the domain, and opens the way. It returns how many frames it sent and how
// many were lost.
func (g *Gap) End(vif string, wait time.Duration) (sent, lost int, err error) {
	if g.tap == nil {
		return 0, 0, nil
	}
	defer func() {
		g.tap.Close() // and with it go the device and the way there
		g.read.Wait()
		n, e := g.send(vif)
		sent, lost, err = sent+n, g.lost, errors.Join(err, e)
		g.unfix(vif)
	}()
	if err := awaitCarrier(vif, wait); err != nil {
		return 0, 0, err
	}
	sent, err = g.send(vif)
	return sent, 0, err
}

// unfix removes the static entry if it moved to the domain's device: it did if the domain
// has spoken meanwhile, and would stay for as long as the device.
func (g *Gap) unfix(vif string) {
	if link, err := netlink.LinkByName(vif); err == nil {
		_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: g.mac})
	}
}

// send sends what is kept to a device, whose domain gets it.
func (g *Gap) send(vif string) (sent int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	frames := g.frames
	g.frames, g.size = nil, 0
	if len(frames) == 0 {
		return 0, nil
	}
	ifi, err := net.InterfaceByName(vif)
	if err != nil {
		g.lost += len(frames)
		return 0, fmt.Errorf("%s: %w", vif, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		g.lost += len(frames)
		return 0, fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6}
	for i, f := range frames {
		if err := unix.Sendto(fd, f, 0, to); err != nil {
			g.lost += len(frames) - i
			return sent, fmt.Errorf("send a kept frame to %s: %w", vif, err)
		}
		sent++
	}
	return sent, nil
}

// ErrNoCarrier is a device that did not come to work in time.
var ErrNoCarrier = errors.New("no carrier")

// awaitCarrier waits until a device is up and its other end works.
func awaitCarrier(name string, wait time.Duration) error {
	changes, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(changes, done); err != nil {
		return fmt.Errorf("listen for changes of devices: %w", err)
	}
	over := time.After(wait)
	for {
		link, err := netlink.LinkByName(name)
		if err == nil && link.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
			return nil
		}
		select {
		case _, ok := <-changes:
			if !ok {
				return fmt.Errorf("%s: the kernel's news of devices ended", name)
			}
		case <-over:
			return fmt.Errorf("%s: %w within %v", name, ErrNoCarrier, wait)
		}
	}
}

// Announce announces the device's address again and again, at Repeats.
func (g *Gap) Announce() error {
	begun := time.Now()
	var errs []error
	for _, at := range Repeats {
		time.Sleep(time.Until(begun.Add(at)))
		errs = append(errs, announce.Send(g.bridge, g.mac))
	}
	return errors.Join(errs...)
}

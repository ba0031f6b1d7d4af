//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the test process on the LAN.
var (
	ClientIP4 = netip.MustParseAddr("10.20.0.1")
	ClientIP6 = netip.MustParseAddr("fd20::1")
	clientMAC = net.HardwareAddr{0x02, 0x20, 0, 0, 0, 0x01}
)

const (
	lanBridge  = "lan"
	mgmtBridge = "mgmt"
	lanBits4   = 24
	lanBits6   = 64
)

// A hostSpec is what distinguishes a host: its name and its addresses.
type hostSpec struct {
	name       string
	lan4, lan6 netip.Addr
	mgmt4      netip.Addr
	lanMAC     string
	mgmtMAC    string
	lanTap     string
	mgmtTap    string
	machineID  string
}

var hostSpecs = []hostSpec{
	{"A", netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr("fd20::2"), netip.MustParseAddr("10.21.0.2"),
		"02:20:00:00:00:0a", "02:21:00:00:00:0a", "lan-a", "mgmt-a", "0123456789abcdef0123456789abcd0a"},
	{"B", netip.MustParseAddr("10.20.0.3"), netip.MustParseAddr("fd20::3"), netip.MustParseAddr("10.21.0.3"),
		"02:20:00:00:00:0b", "02:21:00:00:00:0b", "lan-b", "mgmt-b", "0123456789abcdef0123456789abcd0b"},
	// Only tests of three hosts have this one: see Lab.Third.
	{"C", netip.MustParseAddr("10.20.0.4"), netip.MustParseAddr("fd20::4"), netip.MustParseAddr("10.21.0.4"),
		"02:20:00:00:00:0c", "02:21:00:00:00:0c", "lan-c", "mgmt-c", "0123456789abcdef0123456789abcd0c"},
}

// A network is the two bridges, with a tap on each for every host.
type network struct {
	ns *namespace
	nl *netlink.Handle
}

// openNetwork returns the network of a namespace that has it.
func openNetwork(ns *namespace) (*network, error) {
	n := &network{ns: ns}
	return n, ns.do(func() error {
		var err error
		if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		return nil
	})
}

// newNetwork makes the network in an empty namespace.
func newNetwork(ns *namespace) (*network, error) {
	n, err := openNetwork(ns)
	if err != nil {
		return nil, err
	}
	return n, ns.do(func() error {
		lo, err := n.nl.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("loopback: %w", err)
		}
		if err := n.nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("loopback: %w", err)
		}
		mgmtMAC := net.HardwareAddr{0x02, 0x21, 0, 0, 0, 0x01}
		if err := n.addBridge(lanBridge, clientMAC, netip.PrefixFrom(ClientIP4, lanBits4), netip.PrefixFrom(ClientIP6, lanBits6)); err != nil {
			return err
		}
		if err := n.addBridge(mgmtBridge, mgmtMAC, netip.MustParsePrefix("10.21.0.1/24")); err != nil {
			return err
		}
		for _, spec := range hostSpecs {
			if err := n.addTap(spec.lanTap, lanBridge); err != nil {
				return err
			}
			if err := n.addTap(spec.mgmtTap, mgmtBridge); err != nil {
				return err
			}
			if err := n.isolate(spec.mgmtTap, true); err != nil {
				return err
			}
		}
		return nil
	})
}

func (n *network) addBridge(name string, mac net.HardwareAddr, addrs ...netip.Prefix) error {
	snooping := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac}, MulticastSnooping: &snooping}
	if err := n.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	// The test host sends nothing on the LAN that a test did not ask for.
	for _, set := range []string{"accept_ra=0", "accept_dad=0", "router_solicitations=0"} {
		if err := sysctl6(name, set); err != nil {
			return err
		}
	}
	for _, addr := range addrs {
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
		a := &netlink.Addr{IPNet: ip}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.nl.AddrAdd(br, a); err != nil {
			return fmt.Errorf("add %v to %s: %w", addr, name, err)
		}
	}
	if err := n.nl.LinkSetUp(br); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func (n *network) addTap(name, bridge string) error {
	br, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := n.nl.LinkAdd(tap); err != nil {
		return fmt.Errorf("add tap %s: %w", name, err)
	}
	if err := sysctl6(name, "disable_ipv6=1"); err != nil {
		return err
	}
	if err := n.nl.LinkSetMaster(tap, br); err != nil {
		return fmt.Errorf("add %s to %s: %w", name, bridge, err)
	}
	return n.setUp(name, true)
}

// setUp takes a tap up or down. While it is down, QEMU's writes to it fail and nothing comes out of it: the host
// sees no carrier go, only silence.
func (n *network) setUp(name string, up bool) error {
	link, err := n.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	set := n.nl.LinkSetDown
	if up {
		set = n.nl.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("set %s up=%v: %w", name, up, err)
	}
	return nil
}

// forget removes the test process's entries for LAN neighbours that did not answer, so that it asks again at once.
func (n *network) forget() error {
	br, err := n.nl.LinkByName(lanBridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", lanBridge, err)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		neighbours, err := n.nl.NeighList(br.Attrs().Index, family)
		if err != nil {
			return fmt.Errorf("neighbours on %s: %w", lanBridge, err)
		}
		for _, neigh := range neighbours {
			if neigh.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 {
				continue
			}
			if err := n.nl.NeighDel(&neigh); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget neighbour %v: %w", neigh.IP, err)
			}
		}
	}
	return nil
}

// plug takes a host's LAN up or down.
func (n *network) plug(spec hostSpec, in bool) error {
	if err := n.setUp(spec.lanTap, in); err != nil {
		return err
	}
	return n.forget()
}

// isolate keeps a bridge port from all other isolated ones; the test process still reaches it.
func (n *network) isolate(name string, on bool) error {
	link, err := n.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := n.nl.LinkSetIsolated(link, on); err != nil {
		return fmt.Errorf("set %s isolated=%v: %w", name, on, err)
	}
	return nil
}

// mend makes the network whole.
func (n *network) mend() error {
	for _, spec := range hostSpecs {
		if err := n.plug(spec, true); err != nil {
			return err
		}
		if err := n.isolate(spec.lanTap, false); err != nil {
			return err
		}
		if err := n.isolate(spec.mgmtTap, true); err != nil {
			return err
		}
	}
	return nil
}

func sysctl6(link, set string) error {
	key, value, _ := strings.Cut(set, "=")
	path := "/proc/sys/net/ipv6/conf/" + link + "/" + key
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("%s of %s: %w", key, link, err)
	}
	return nil
}

// dial connects from the test host. The address must be a literal one.
func (n *network) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	if enter := n.ns.enter(func() { conn, err = new(net.Dialer).DialContext(ctx, network, addr) }); enter != nil {
		return nil, enter
	}
	return conn, err
}

func (n *network) close() { n.nl.Close() }

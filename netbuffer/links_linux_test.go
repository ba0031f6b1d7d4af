package netbuffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gated returns a kernel in a namespace of its own, with vif901.0 behind a gate
// that has no queues.
func gated(t *testing.T) (*kernel, *vif) {
	t.Helper()
	inNamespace(t)
	pair(t, "vif901.0", "guest0")
	k, err := newKernel(901, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.close() })
	link, err := k.h.LinkByName("vif901.0")
	if err != nil {
		t.Fatal(err)
	}
	v := newVif(Vif{Name: "vif901.0"}, Options{})
	k.all[v] = &device{tc: k.tc, vif: link}
	return k, v
}

// elsewhere returns a network namespace that lives as long as the test.
func elsewhere(t *testing.T) (fd int) {
	t.Helper()
	ns := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			close(ns)
			return
		}
		f, _ := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		ns <- f
	}()
	f := <-ns
	if f == nil {
		t.Fatal("no second network namespace")
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

// TestAddedListsNoLinks: whatever happens to links, what came, went or moved is
// known from the kernel's reports alone. Without its handle the kernel can't
// list links: it would panic.
func TestAddedListsNoLinks(t *testing.T) {
	k, v := gated(t)
	defer func(h *netlink.Handle) { k.h = h }(k.h)
	k.h = nil
	want := func(what string, names ...string) {
		t.Helper()
		got, err := k.added([]*vif{v})
		if err != nil || !slices.Equal(got, names) {
			t.Errorf("%s: got %v, %v, want %v", what, got, err, names)
		}
	}
	want("nothing happened")
	pair(t, "vif9011.0", "other") // another domain's
	pair(t, "vif901.2", "guest2")
	pair(t, "vif901.1", "guest1")
	want("two came", "vif901.1", "vif901.2")
	want("a second look", "vif901.1", "vif901.2")
	link := func(name string) netlink.Link {
		t.Helper()
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	// A bridge reports its ports in messages that look like those about links.
	la := netlink.NewLinkAttrs()
	la.Name = "br0"
	err := errors.Join(
		netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}),
		netlink.LinkSetMaster(link("vif901.0"), link("br0")),
		netlink.LinkSetNoMaster(link("vif901.0")),
		netlink.LinkDel(link("vif901.1")))
	if err != nil {
		t.Fatal(err)
	}
	if want("one went", "vif901.2"); v.gone {
		t.Error("a vif that left its bridge counts as gone")
	}
	if err := netlink.LinkDel(link("vif901.0")); err != nil {
		t.Fatal(err)
	}
	if want("the gated one went", "vif901.2"); !v.gone || v.moved {
		t.Errorf("gone %v, moved %v, want gone", v.gone, v.moved)
	}
}

// TestMovedIsNotGone: a vif that was moved to another namespace goes on sending
// there, so Seal and Held refuse it. One that was deleted does no harm.
func TestMovedIsNotGone(t *testing.T) {
	for _, move := range []bool{true, false} {
		t.Run(fmt.Sprintf("move=%v", move), func(t *testing.T) {
			k, v := gated(t)
			v.Path = &idle{}
			g := newGate(Options{}, k)
			g.vifs = []*vif{v}
			if missing := g.Missing([]int{0, 1}); !slices.Equal(missing, []int{1}) {
				t.Errorf("missing: %v", missing)
			}
			link := k.all[v].vif
			var err error
			if move {
				err = netlink.LinkSetNsFd(link, elsewhere(t))
			} else {
				err = netlink.LinkDel(link)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, _, held := g.Held()
			for what, err := range map[string]error{"seal": g.Seal(1), "held": held} {
				if errors.Is(err, ErrMoved) != move || !move && err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			if missing := g.Missing([]int{0, 1}); !slices.Equal(missing, []int{0, 1}) {
				t.Errorf("missing afterwards: %v", missing)
			}
		})
	}
}

// TestLostReports: if the kernel could not report all that happened, the links
// are listed.
func TestLostReports(t *testing.T) {
	k, v := gated(t)
	if err := unix.SetsockoptInt(k.watch, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		pair(t, fmt.Sprintf("vif901.%d", i+1), fmt.Sprintf("guest%d", i+1))
	}
	if err := netlink.LinkDel(k.all[v].vif); err != nil {
		t.Fatal(err)
	}
	got, err := k.added([]*vif{v})
	if want := []string{"vif901.1", "vif901.2", "vif901.3", "vif901.4"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if !v.gone {
		t.Error("the vif that was deleted is not gone")
	}
}

// TestOpenWantsDevices: a network device of the domain that has no interface
// here is named.
func TestOpenWantsDevices(t *testing.T) {
	inNamespace(t)
	pair(t, "vif901.0", "guest0")
	opts := Options{Devices: []int{0, 2}}
	_, err := Open(901, opts)
	for what, err := range map[string]error{"open": err, "inspect": Inspect(901, opts)} {
		var nv *NoVifError
		if !errors.As(err, &nv) || nv.Vif != "vif901.2" || !errors.Is(err, ErrNoVif) {
			t.Errorf("%s: got %v, want a NoVifError of vif901.2", what, err)
		}
	}
	if err := Inspect(901, Options{Devices: []int{0}}); err != nil {
		t.Errorf("the one that is there: %v", err)
	}
	if ids, err := Stale(); err != nil || len(ids) > 0 {
		t.Errorf("gates left: %v, %v", ids, err)
	}
}

// linkMessage is what a little-endian kernel reports of a link that was moved to
// another namespace, without the header of netlink.
var linkMessage = slices.Concat(
	// struct ifinfomsg
	[]byte{0, 0, 1, 0},                                                      // family, padding, type: Ethernet
	[]byte{0x07, 0x00, 0x00, 0x00},                                          // index 7
	[]byte{0, 0, 0, 0},                                                      // flags
	[]byte{0xff, 0xff, 0xff, 0xff},                                          // change
	[]byte{0x0d, 0x00, 0x03, 0x00}, []byte("vif901.0\x00"), []byte{0, 0, 0}, // IFLA_IFNAME
	[]byte{0x08, 0x00, 0x2d, 0x00, 0, 0, 0, 0}, // IFLA_NEW_NETNSID
)

func TestParseLink(t *testing.T) {
	littleEndian(t)
	want := linkChange{index: 7, name: "vif901.0", gone: true, moved: true}
	if got, ok := parseLink(unix.RTM_DELLINK, linkMessage); !ok || got != want {
		t.Errorf("got %+v, %v, want %+v", got, ok, want)
	}
	if got, ok := parseLink(unix.RTM_NEWLINK, linkMessage); !ok || got.gone || got.moved {
		t.Errorf("a new link: got %+v, %v", got, ok)
	}
	if _, ok := parseLink(unix.RTM_NEWADDR, linkMessage); ok {
		t.Error("a message about an address is taken for one about a link")
	}
	port := slices.Clone(linkMessage)
	port[0] = unix.AF_BRIDGE
	if _, ok := parseLink(unix.RTM_DELLINK, port); ok {
		t.Error("a port that left its bridge is taken for a link that is gone")
	}
	for n := range len(linkMessage) {
		if got, ok := parseLink(unix.RTM_DELLINK, linkMessage[:n]); ok && got.moved {
			t.Errorf("%d of %d bytes: got %+v", n, len(linkMessage), got)
		}
	}
	nameless := binary.LittleEndian.AppendUint16(slices.Clone(linkMessage[:16]), 3)
	if _, ok := parseLink(unix.RTM_NEWLINK, nameless); ok {
		t.Error("a message without a name was read")
	}
}

// TestAloneLooksAgain: what comes to stand beside a gate is noticed, and no
// longer told when it has gone.
func TestAloneLooksAgain(t *testing.T) {
	k, v := gated(t)
	if err := k.alone(v); err != nil {
		t.Fatal(err)
	}
	addChain(t, unix.NFPROTO_NETDEV, netdevIngress, "vif901.0", false)
	soon(t, "the chain is noticed", func() bool { return errors.Is(k.alone(v), ErrForeign) })
	if err := netlink.LinkDel(k.all[v].vif); err != nil {
		t.Fatal(err)
	}
	soon(t, "it is gone with the vif", func() bool { return k.alone(v) == nil })
}

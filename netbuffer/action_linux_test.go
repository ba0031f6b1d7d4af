package netbuffer

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// steering returns the device of vif901.0 in a namespace of its own, redirected
// to the first of two ifbs by a u32 filter that matches everything, for kernels
// that lack matchall.
func steering(t *testing.T) *device {
	t.Helper()
	inNamespace(t)
	pair(t, "vif901.0", "guest0")
	c, err := newTC()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	d := &device{tc: c}
	if d.vif, err = c.h.LinkByName("vif901.0"); err != nil {
		t.Fatal(err)
	}
	for i := range d.ifb {
		if d.ifb[i], err = c.makeIfb(suffix("xlft901.0", i), 1500); err != nil {
			t.Skip(err)
		}
		if err := c.h.LinkSetUp(d.ifb[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.addQdisc(); err != nil {
		t.Skip(err)
	}
	d.action = uint32(actionIndex | d.ifb[0].Attrs().Index)
	actions := d.filter(0, filterPriority).Actions[:1] // not every kernel has gact
	err = c.h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: d.vif.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Actions:     actions,
	})
	if errors.Is(err, unix.ENOENT) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// soon calls f until it returns true, five seconds at most.
func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within five seconds: %s", what)
		}
	}
}

// TestSteerNotices: after some other program removed the qdisc with the
// redirect, as ovs-vswitchd does, Steer says so and leaves no action behind.
func TestSteerNotices(t *testing.T) {
	d := steering(t)
	for q := range 2 {
		if err := d.Steer(1 - q); err != nil {
			t.Fatalf("steer to queue %d: %v", 1-q, err)
		}
	}
	// RTM_DELQDISC at TC_H_INGRESS.
	err := netlink.QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.vif.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS},
		QdiscType:  "clsact",
	})
	if err != nil {
		t.Fatal(err)
	}
	// The kernel destroys the filter's action a moment later.
	soon(t, "steer says bypassed", func() bool {
		err := d.Steer(1)
		if err != nil && !errors.Is(err, ErrBypassed) {
			t.Fatal(err)
		}
		return err != nil
	})
	if err := d.tc.deleteMirred(d.action); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the action that no filter uses: delete says %v, want ENOENT", err)
	}
}

// TestSteerWithoutVif: a vif that vanished is no bypass.
func TestSteerWithoutVif(t *testing.T) {
	d := steering(t)
	if err := netlink.LinkDel(d.vif); err != nil {
		t.Fatal(err)
	}
	soon(t, "the action is gone", func() bool {
		if err := d.Steer(1); err != nil {
			t.Fatalf("steer: %v", err)
		}
		return errors.Is(d.tc.deleteMirred(d.action), unix.ENOENT)
	})
}

// mirredMessage is what a little-endian kernel answers to RTM_NEWACTION with an
// echo, without the header of netlink.
var mirredMessage = slices.Concat(
	[]byte{0, 0, 0, 0},                                              // struct tcamsg: family, padding
	[]byte{0x40, 0x00, 0x01, 0x00},                                  // TCA_ACT_TAB
	[]byte{0x3c, 0x00, 0x01, 0x00},                                  // the first action
	[]byte{0x0b, 0x00, 0x01, 0x00}, []byte("mirred\x00"), []byte{0}, // TCA_ACT_KIND
	[]byte{0x08, 0x00, 0x07, 0x00}, []byte{0, 0, 0, 0}, // TCA_ACT_FLAGS
	[]byte{0x24, 0x00, 0x02, 0x80}, // TCA_ACT_OPTIONS, nested
	[]byte{0x20, 0x00, 0x02, 0x00}, // TCA_MIRRED_PARMS: struct tc_mirred
	[]byte{0x05, 0x00, 0x00, 0x78}, // index
	[]byte{0x00, 0x00, 0x00, 0x00}, // capab
	[]byte{0x04, 0x00, 0x00, 0x00}, // action: stolen
	[]byte{0x02, 0x00, 0x00, 0x00}, // refcnt
	[]byte{0x01, 0x00, 0x00, 0x00}, // bindcnt
	[]byte{0x01, 0x00, 0x00, 0x00}, // eaction: egress redirect
	[]byte{0x05, 0x00, 0x00, 0x00}, // ifindex
)

func TestParseBound(t *testing.T) {
	littleEndian(t)
	if n, ok := parseBound(mirredMessage); !ok || n != 1 {
		t.Errorf("got %d, %v, want 1", n, ok)
	}
	unbound := slices.Clone(mirredMessage)
	binary.LittleEndian.PutUint32(unbound[len(unbound)-12:], 0)
	if n, ok := parseBound(unbound); !ok || n != 0 {
		t.Errorf("got %d, %v, want 0", n, ok)
	}
	for n := range len(mirredMessage) {
		if got, ok := parseBound(mirredMessage[:n]); ok {
			t.Errorf("%d of %d bytes: got %d", n, len(mirredMessage), got)
		}
	}
}

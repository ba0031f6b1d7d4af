package netbuffer

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNamespace moves the test into a network namespace of its own. The thread
// is not unlocked, so it and the namespace end with the test.
func inNamespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// pair makes a veth pair, both ends up.
func pair(t testing.TB, name, peer string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: peer}); err != nil {
		t.Fatalf("make veth %s: %v", name, err)
	}
	for _, n := range []string{name, peer} {
		l, err := netlink.LinkByName(n)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestCheck: Check says nil or what is missing and how to get it.
func TestCheck(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	err := Check(t.Context())
	if err == nil {
		return
	}
	var ue *UnsupportedError
	if !errors.As(err, &ue) || !errors.Is(err, ErrUnsupported) || ue.Module == "" {
		t.Fatalf("not an UnsupportedError: %v", err)
	}
	t.Skip(err)
}

// TestOpenUndoes: on a kernel that lacks something Open leaves nothing behind.
func TestOpenUndoes(t *testing.T) {
	if err := Check(t.Context()); err == nil {
		t.Skip("this kernel lacks nothing")
	}
	inNamespace(t)
	pair(t, "vif901.0", "guest")
	if _, err := Open(901, Options{}); !errors.Is(err, ErrUnsupported) {
		t.Fatalf("got %v, want ErrUnsupported", err)
	}
	if ids, err := Stale(); err != nil || len(ids) > 0 {
		t.Errorf("gates left: %v, %v", ids, err)
	}
	vif, err := netlink.LinkByName("vif901.0")
	if err != nil {
		t.Fatal(err)
	}
	qs, err := netlink.QdiscList(vif)
	for _, q := range qs {
		if q.Attrs().Parent == netlink.HANDLE_INGRESS {
			t.Errorf("%s left on the vif", q.Type())
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func TestOpenWithoutVifs(t *testing.T) {
	inNamespace(t)
	g, err := Open(901, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for e := range uint64(3) {
		if err := errors.Join(g.Seal(e+1), g.Release(e+1)); err != nil {
			t.Fatal(err)
		}
	}
	pair(t, "vif901.0", "guest")
	var nv *NewVifError
	for range 2 { // it stays an error until AddVifs or Close
		if err := g.Seal(4); !errors.As(err, &nv) || len(nv.Vifs) != 1 || nv.Vifs[0] != "vif901.0" {
			t.Fatalf("got %v, want a NewVifError for vif901.0", err)
		}
	}
	pair(t, "vif9011.0", "other") // another domain's
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(901, Options{Vifs: []string{"custom"}}); !errors.Is(err, ErrNoVif) {
		t.Errorf("got %v, want ErrNoVif", err)
	}
}

//go:build lab

package evtchn

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// These run in a dom0, beside a guest. TestLabXXX is for the lab's hosts alone.

func hypervisor(t *testing.T) *Hypervisor {
	h, err := OpenHypervisor()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func device(t *testing.T) *Device {
	d, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// next returns the ports that have events, and unmasks them.
func next(t *testing.T, d *Device) []Port {
	t.Helper()
	if err := d.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := d.Wait(make([]Port, 8))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Unmask(got...); err != nil {
		t.Fatal(err)
	}
	return got
}

// A channel from dom0 to itself: events go both ways, one at a time.
func TestLabLoop(t *testing.T) {
	a, b, h := device(t), device(t), hypervisor(t)
	p, err := a.BindUnbound(0)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := h.Port(0, p); err != nil || s.Kind != Unbound || s.Domain != 0 {
		t.Errorf("before: %+v, %v", s, err)
	}
	q, err := b.BindInterdomain(0, p)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := h.Port(0, p); err != nil || s.Kind != Interdomain || s.Domain != 0 || s.RemotePort != q {
		t.Errorf("after: %+v, %v; the other end is %d", s, err, q)
	}
	if got := next(t, b); !slices.Equal(got, []Port{q}) { // a new port is pending
		t.Errorf("events of %d", got)
	}
	for range 100 {
		if err := b.Notify(q); err != nil {
			t.Fatal(err)
		}
		if got := next(t, a); !slices.Equal(got, []Port{p}) {
			t.Fatalf("events of %d", got)
		}
		if err := a.Notify(p); err != nil {
			t.Fatal(err)
		}
		if got := next(t, b); !slices.Equal(got, []Port{q}) {
			t.Fatalf("events of %d", got)
		}
	}
	// Of the events that come while a port is masked one is kept.
	for range 5 {
		if err := b.Notify(q); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if got := next(t, a); !slices.Equal(got, []Port{p}) {
			t.Errorf("events of %d", got)
		}
	}
	a.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if got, err := a.Wait(make([]Port, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another event: %d, %v", got, err)
	}
	if err := b.Unbind(q); err != nil {
		t.Fatal(err)
	}
	if err := b.Notify(q); err == nil {
		t.Error("a port that was unbound is notified")
	}
	if s, err := h.Port(0, p); err != nil || s.Kind != Unbound {
		t.Errorf("after the other end was unbound: %+v, %v", s, err)
	}
}

// The guest's ports are those that its devices have in xenstore; a port that dom0 makes
// in it is one more.
func TestLabGuest(t *testing.T) {
	h := hypervisor(t)
	domid := guest(t)
	all, err := h.Ports(domid)
	if err != nil {
		t.Fatal(err)
	}
	find := func(p Port) State {
		for _, s := range all {
			if s.Port == p {
				return s
			}
		}
		return State{}
	}
	kinds := map[Kind]int{}
	for _, s := range all {
		kinds[s.Kind]++
	}
	t.Logf("%d ports: %v", len(all), kinds)
	if kinds[VIRQ] == 0 || kinds[Interdomain] < 3 { // its timer; xenstore, the console and a network device
		t.Errorf("ports: %+v", all)
	}
	for _, path := range []string{"store/port", "console/port"} {
		if p := read(t, domid, path); find(p).Kind != Interdomain || find(p).Domain != 0 {
			t.Errorf("%s is %d: %+v", path, p, find(p))
		}
	}
	if _, err := h.Ports(32000); !errors.Is(err, ErrNoDomain) {
		t.Errorf("ports of no domain: %v", err)
	}

	made, err := h.AllocUnbound(domid, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := device(t)
	mine, err := d.BindInterdomain(domid, made)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := h.Port(domid, made); err != nil || s.Kind != Interdomain || s.RemotePort != mine {
		t.Errorf("made port %d, bound to %d: %+v, %v", made, mine, s, err)
	}
	d.Close()
	if s, err := h.Port(domid, made); err != nil || s.Kind != Unbound || s.Domain != 0 {
		t.Errorf("made port %d, unbound: %+v, %v", made, s, err)
	}
	// It can be bound again.
	if _, err := device(t).BindInterdomain(domid, made); err != nil {
		t.Error(err)
	}
}

// guest returns the domid of a running guest.
func guest(t *testing.T) uint32 {
	out, err := exec.Command("xl", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if id, err := strconv.Atoi(f[1]); err == nil && id > 0 {
			return uint32(id)
		}
	}
	t.Fatalf("no guest:\n%s", out)
	return 0
}

func read(t *testing.T, domid uint32, path string) Port {
	path = "/local/domain/" + strconv.Itoa(int(domid)) + "/" + path
	out, err := exec.Command("xenstore-read", path).Output()
	if err != nil {
		t.Fatalf("xenstore-read %s: %v", path, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return Port(n)
}

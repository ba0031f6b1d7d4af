//go:build lab

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"xlft/netbuffer"
	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// bulk returns how many bits a second the guest brings out over one TCP connection, once the connection has found its
// rate.
func (fx *fixture) bulk(warm, d time.Duration) float64 {
	fx.t.Helper()
	n, err := fx.dial().Bulk(warm, d)
	check(fx.t, err)
	return float64(n) * 8 / d.Seconds()
}

// vif is the guest's network interface on its host.
func (fx *fixture) vif() string {
	fx.t.Helper()
	id, err := fx.home.Domid(within(fx.t, soon), fx.guest.Name)
	check(fx.t, err)
	return fmt.Sprintf("vif%d.0", id)
}

// zerocopy returns what the backend counts of the guest's packets that it did not copy. A packet that "failed" was copied
// later, and given back to the guest before it left.
func (fx *fixture) zerocopy() (sent, success, fail int) {
	fx.t.Helper()
	out := fx.home.Must(fx.t, "ethtool", "-S", fx.vif())
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		for what, n := range map[string]*int{"tx_zerocopy_sent": &sent, "tx_zerocopy_success": &success, "tx_zerocopy_fail": &fail} {
			if name == what {
				fmt.Sscan(value, n)
			}
		}
	}
	return sent, success, fail
}

// A protected guest that sends much is bounded by its connection's window and the time to the ack, and not by the two
// packets that its kernel leaves in a network device that does not answer. The packets in the gate are copies: what the
// guest writes to its memory after it sent them does not change them.
func TestBulkOutput(t *testing.T) {
	lab.Long(t)
	const long = 20 * time.Second
	const stall = 4 * time.Second // shorter than failure_timeout
	fx := unprotected(t)
	alone := fx.bulk(long/4, long/2)
	t.Logf("unprotected: %.2f Mbit/s", alone/1e6)

	fx.protect()
	before, _, copied := fx.zerocopy()
	rate := fx.bulk(long, long) // a round trip takes an epoch and more
	after, _, fail := fx.zerocopy()
	t.Logf("protected: %.3f Mbit/s; of %d packets that the backend did not copy, the gate copied %d", rate/1e6, after-before, fail-copied)
	if fail-copied < (after-before)*9/10 {
		t.Errorf("only %d of %d packets were copied and given back", fail-copied, after-before)
	}
	if rate < 4e5 { // 5e4 with packets that wait themselves
		t.Errorf("a protected guest brings out %.3f Mbit/s", rate/1e6)
	}

	// Hold the pages for longer than the guest and its host need to get them into the gate. Two pages are eight segments;
	// of a new connection's segments the guest itself would hold the eleventh.
	c := fx.dial()
	check(t, c.SetDeadline(time.Now().Add(patience)))
	fx.signal(fx.backup(), "STOP", "receive")
	var ages []uint64
	read := make(chan error)
	go func() {
		var err error
		ages, err = c.Moving(2, 100*time.Millisecond)
		read <- err
	}()
	<-time.After(stall)
	fx.signal(fx.backup(), "CONT", "receive")
	check(t, <-read)
	t.Logf("the guest wrote to a page for so many milliseconds after it had sent it, while the gate held for %v: %d", stall, ages)
	if oldest := slices.Max(ages); oldest > uint64(stall.Milliseconds()/3) {
		t.Errorf("a page left with what the guest wrote %d ms later", oldest)
	}
	if r := fx.status(fx.home); !r.Protected {
		t.Errorf("it is %s", r.State)
	}
}

// Some other program removes the redirect to the gate, as Open vSwitch does with the ingress of its ports. From then on
// nothing is held: the domain counts as unprotected, everywhere, until its output is held again.
func TestRedirectRemoved(t *testing.T) {
	fx := protected(t)
	fx.home.Must(t, "tc", "qdisc", "del", "dev", fx.vif(), "clsact")
	fx.await(fx.home, "unprotected", func(r ft.Row) bool { return !r.Protected && r.Role == "primary" })
	fx.refused(fx.home, "not protected", "xl", "ft-status", fx.guest.Name)
	fx.expectLog(fx.home, netbuffer.ErrBypassed.Error())
	fx.await(fx.home, "protected again", isProtected)
	filters := fx.home.Must(t, "tc", "filter", "show", "dev", fx.vif(), "ingress")
	if !strings.Contains(filters, "matchall") || !strings.Contains(filters, "xlft") {
		t.Errorf("the filters of %s:\n%s", fx.vif(), filters)
	}
	fx.get()
}

// A domain is destroyed while the gate holds what it sent, and nobody is there to let that out. The packets in the gate
// are copies, and refer to none of the domain's pages: the kernel takes the domain's devices down without them.
func TestDestroyedWhileHeld(t *testing.T) {
	lab.Long(t)
	fx := protected(t)
	from, to, vif := fx.home, fx.backup(), fx.vif()
	c := fx.dial()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c.Bulk(patience, patience)
	}()
	fx.stop(from, fx.protectorUnit())
	fx.awaitTakeover(to)
	held := from.Must(t, "sh", "-c", "tc -s qdisc show | grep -A2 'qdisc plug' | grep -o 'backlog .*'")
	t.Logf("held in the gate of %s: %q", vif, strings.Fields(held))
	if strings.Count(held, "b 0p") == strings.Count(held, "backlog") {
		t.Error("the gate holds nothing")
	}
	begun := time.Now()
	from.Must(t, "xl", "destroy", fx.guest.Name)
	t.Logf("xl destroy took %v", round(time.Since(begun)))
	fx.until(soon, func() error {
		out, err := from.Run(within(t, soon), "sh", "-c", "ip -o link show dev "+vif+" 2>/dev/null; ps -o stat= -C xenwatch; true")
		if err == nil && (strings.Contains(out, vif) || strings.HasPrefix(strings.TrimSpace(out), "D")) {
			err = fmt.Errorf("%v after the domain was destroyed: %q", round(time.Since(begun)), out)
		}
		return err
	})
	t.Logf("its device was gone %v after that", round(time.Since(begun)))
	fx.cont(from, fx.protectorUnit())
	fx.awaitClean(from)
	c.Close()
	<-sent
	fx.awaitDomains(to, fx.guest.Name)
	fx.get()
}

//go:build lab

package scenario

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

// A backup that is alive and acks nothing: no packet of any kind leaves from an unacked epoch.
func TestOutputHeld(t *testing.T) {
	const hold = 6 * time.Second
	fx := protected(t)
	k := fx.talk(20)

	// A backup acks an epoch when its restore has the previous epoch, so a stopped restore ends the acks. The heartbeats
	// continue.
	fx.signal(fx.backup(), "STOP", "restore-worker")
	stopped := time.Now()
	var epoch uint64
	check(t, lab.Await(within(t, soon), func() error {
		was, at := epoch, time.Now()
		if epoch = fx.status(fx.home).Epoch; epoch != was {
			return fmt.Errorf("epoch %d was acked", epoch)
		}
		for time.Since(at) < 10*ft.Usual.EpochMax { // a checkpoint takes an emulated host more than one
			if e := fx.status(fx.home).Epoch; e != epoch {
				return fmt.Errorf("epoch %d was acked", e)
			}
		}
		return nil
	}))
	begun, sent := time.Now(), fx.vifSent()
	<-time.After(hold)
	ended := time.Now()
	r := fx.status(fx.home)
	sent = fx.vifSent() - sent
	fx.signal(fx.backup(), "CONT", "restore-worker")
	h := k.end()

	t.Logf("no ack after epoch %d; watched from %v to %v after the restore was stopped; the gate held %d KiB then",
		epoch, round(begun.Sub(stopped)), round(ended.Sub(stopped)), r.Primary.HeldBytes>>10)
	if r.Epoch != epoch || !r.Protected {
		t.Fatalf("epoch %d, protected %v: the backup was to ack nothing and be alive", r.Epoch, r.Protected)
	}
	if out := h.between(fx.home, begun, ended); len(out) > 0 {
		t.Errorf("%d frames left while no epoch was acked; the first: % x", len(out), out[0].Data[:60])
	}
	t.Logf("meanwhile the guest sent %d frames, by the counter of its vif; %d left", sent, len(h.between(fx.home, begun, ended)))
	if sent < 100 {
		t.Errorf("the guest sent %d frames in %v", sent, hold)
	}
	fx.complete(h)
}

// vifSent returns how many frames the guest's network device has sent.
func (fx *fixture) vifSent() uint64 {
	fx.t.Helper()
	id, err := fx.home.Domid(within(fx.t, soon), fx.guest.Name)
	check(fx.t, err)
	out := fx.home.Must(fx.t, "cat", fmt.Sprintf("/sys/class/net/vif%d.0/statistics/rx_packets", id))
	n, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	check(fx.t, err)
	return n
}

// The receiver restarts, or is killed: the domain runs on and is reported as unprotected, and is synced again without
// an operator. tests/processes kills receivers all the time; here they are systemd's.
func TestReceiverRestarted(t *testing.T) {
	lab.Long(t)
	fx := protected(t)
	for _, how := range []struct{ name, command string }{
		{"restart", "systemctl restart xlft-receiver.service"},
		{"SIGKILL", "systemctl kill --signal=KILL --kill-who=main xlft-receiver.service"},
	} {
		k := fx.talk(10)
		fx.backup().Must(t, "sh", "-c", how.command)
		t.Log(how.command)
		fx.awaitUnprotected()
		fx.await(fx.home, "synced again by itself", isProtected)
		fx.complete(k.end())
		if got := fx.domains(fx.backup()); len(got) != 1 {
			t.Errorf("%s: the backup has domains %q, want one replica", how.name, got)
		}
	}
}

// The backup's host dies: the domain runs on unprotected and loses no packet; when the host is back it is synced again.
func TestBackupKilled(t *testing.T) {
	fx := protected(t)
	s := fx.dial()
	defer s.Close()
	start := fx.get()
	k := fx.talk(10)
	stream := s.Stream(1, 16)

	fx.backup().Kill()
	fx.awaitUnprotected()
	replies, err := stream.Stop(patience)
	check(t, err)
	t.Logf("the client's longest wait was %v, failure_timeout is %v", round(probe.LongestGap(replies)), ft.Usual.FailureTimeout)
	fx.judge(start, replies)
	fx.complete(k.end())

	fx.revive(fx.backup())
	fx.await(fx.home, "synced again by itself", isProtected)
}

// A second ft-start changes nothing.
func TestAlreadyProtected(t *testing.T) {
	fx := protected(t)
	fx.refused(fx.home, "is protected already", "xl", "ft-start", fx.guest.Name)
	if !fx.status(fx.home).Protected {
		t.Error("the domain is not protected any more")
	}
}

// ft-stop: the domain runs on, nothing is left of the protection, no packet is lost or out of order. The replica is
// destroyed before its restore is complete, and an ft-start right afterwards succeeds.
func TestStop(t *testing.T) {
	fx := protected(t)
	vifs := func() string { return fx.backup().Must(t, "sh", "-c", "dmesg | grep vif || :") }
	before := vifs()
	s := fx.dial()
	defer s.Close()
	start := fx.get()
	k := fx.talk(20)
	stream := s.Stream(1, 16)
	begun := time.Now()
	t.Log(strings.TrimSpace(fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)))
	t.Logf("ft-stop took %v", round(time.Since(begun)))
	fx.awaitClean(fx.home)
	fx.awaitDomains(fx.backup())
	replies, err := stream.Stop(patience)
	check(t, err)
	fx.judge(start, replies)
	fx.complete(k.end())
	fx.awaitDomains(fx.home, fx.guest.Name)
	for _, h := range fx.Hosts() {
		if r := fx.status(h); r.Protected || r.Primary != nil || r.Backup != nil {
			t.Errorf("ft-status on %s: %+v", h.Name(), r)
		}
	}

	fx.protect()
	fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
	fx.protect()
	if out := vifs(); out != before {
		t.Errorf("the backup made network devices for a replica that never ran:\n%s", out)
	}
}

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

// A backup that lives and acks nothing: no packet of an unacked epoch leaves, of any kind.
func TestOutputHeld(t *testing.T) {
	const hold = 6 * time.Second
	w := protected(t)
	k := w.talk(20)

	// A backup acks an epoch when its restore has the one before, so a restore that stands still ends the acks. The
	// heartbeats go on.
	w.signal(w.backup(), "STOP", "restore-worker")
	stopped := time.Now()
	var epoch uint64
	check(t, lab.Await(within(t, soon), func() error {
		was, at := epoch, time.Now()
		if epoch = w.status(w.home).Epoch; epoch != was {
			return fmt.Errorf("epoch %d was acked", epoch)
		}
		for time.Since(at) < 2*ft.Usual.EpochMax {
			if e := w.status(w.home).Epoch; e != epoch {
				return fmt.Errorf("epoch %d was acked", e)
			}
		}
		return nil
	}))
	begun, sent := time.Now(), w.vifSent()
	<-time.After(hold)
	ended := time.Now()
	r := w.status(w.home)
	sent = w.vifSent() - sent
	w.signal(w.backup(), "CONT", "restore-worker")
	h := k.end()

	t.Logf("no ack after epoch %d; watched from %v to %v after the restore was stopped; the gate held %d KiB then",
		epoch, round(begun.Sub(stopped)), round(ended.Sub(stopped)), r.Primary.HeldBytes>>10)
	if r.Epoch != epoch || !r.Protected {
		t.Fatalf("epoch %d, protected %v: the backup was to ack nothing and be alive", r.Epoch, r.Protected)
	}
	if out := h.between(w.home, begun, ended); len(out) > 0 {
		t.Errorf("%d frames left while no epoch was acked; the first: % x", len(out), out[0].Data[:60])
	}
	t.Logf("meanwhile the guest sent %d frames, by the counter of its vif; %d left", sent, len(h.between(w.home, begun, ended)))
	if sent < 100 {
		t.Errorf("the guest sent %d frames in %v", sent, hold)
	}
	w.complete(h)
}

// vifSent returns how many frames the guest's network device has sent.
func (w *world) vifSent() uint64 {
	w.t.Helper()
	id, err := w.home.Domid(within(w.t, soon), w.guest.Name)
	check(w.t, err)
	out := w.home.Must(w.t, "cat", fmt.Sprintf("/sys/class/net/vif%d.0/statistics/rx_packets", id))
	n, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	check(w.t, err)
	return n
}

// The receiver restarts, or is killed: the domain runs on, unprotected and saying so, and is synced again by itself.
func TestReceiverRestarted(t *testing.T) {
	w := protected(t)
	for _, how := range []struct{ name, command string }{
		{"restart", "systemctl restart xlft-receiver.service"},
		{"SIGKILL", "systemctl kill --signal=KILL --kill-who=main xlft-receiver.service"},
	} {
		k := w.talk(10)
		w.backup().Must(t, "sh", "-c", how.command)
		t.Log(how.command)
		w.awaitUnprotected()
		w.await(w.home, "synced again by itself", isProtected)
		w.complete(k.end())
		if got := w.domains(w.backup()); len(got) != 1 {
			t.Errorf("%s: the backup has domains %q, want one replica", how.name, got)
		}
	}
}

// The backup's host dies: the domain runs on unprotected and loses no packet; when the host is back it is synced again.
func TestBackupKilled(t *testing.T) {
	w := protected(t)
	s := w.dial()
	defer s.Close()
	start := w.get()
	k := w.talk(10)
	stream := s.Stream(1, 16)

	w.backup().Kill()
	w.awaitUnprotected()
	replies, err := stream.Stop(patience)
	check(t, err)
	t.Logf("the client's longest wait was %v, failure_timeout is %v", round(probe.LongestGap(replies)), ft.Usual.FailureTimeout)
	w.judge(start, replies)
	w.complete(k.end())

	w.revive(w.backup())
	w.await(w.home, "synced again by itself", isProtected)
}

// A second ft-start changes nothing.
func TestAlreadyProtected(t *testing.T) {
	w := protected(t)
	w.refused(w.home, "is protected already", "xl", "ft-start", w.guest.Name)
	if !w.status(w.home).Protected {
		t.Error("the domain is not protected any more")
	}
}

// ft-stop: the domain runs on, nothing is left of the protection, no packet is lost or out of order. The replica goes
// without having been built to its end, and an ft-start right behind finds the way free.
func TestStop(t *testing.T) {
	w := protected(t)
	vifs := func() string { return w.backup().Must(t, "sh", "-c", "dmesg | grep vif || :") }
	before := vifs()
	s := w.dial()
	defer s.Close()
	start := w.get()
	k := w.talk(20)
	stream := s.Stream(1, 16)
	begun := time.Now()
	t.Log(strings.TrimSpace(w.home.Must(t, "xl", "ft-stop", w.guest.Name)))
	t.Logf("ft-stop took %v", round(time.Since(begun)))
	w.awaitClean(w.home)
	w.awaitDomains(w.backup())
	replies, err := stream.Stop(patience)
	check(t, err)
	w.judge(start, replies)
	w.complete(k.end())
	w.awaitDomains(w.home, w.guest.Name)
	for _, h := range w.Hosts() {
		if r := w.status(h); r.Protected || r.Primary != nil || r.Backup != nil {
			t.Errorf("ft-status on %s: %+v", h.Name(), r)
		}
	}

	w.protect()
	w.home.Must(t, "xl", "ft-stop", w.guest.Name)
	w.protect()
	if out := vifs(); out != before {
		t.Errorf("the backup made network devices for a replica that never ran:\n%s", out)
	}
}

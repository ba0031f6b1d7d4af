//go:build lab

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

const (
	receiverUnit = "xlft-receiver.service"
	blink        = 1500 * time.Millisecond // shorter than failure_timeout
	nap          = 30 * time.Second        // longer than all that a host waits for the other one
)

// protectorUnit is the unit of the guest's protector.
func (fx *fixture) protectorUnit() string { return "xlft@" + fx.guest.Name + ".service" }

// stop stops the main process of a unit, as if its host gave it no time; cont lets it go on.
func (fx *fixture) stop(h *lab.Host, unit string) { fx.kill(h, "STOP", unit) }
func (fx *fixture) cont(h *lab.Host, unit string) { fx.kill(h, "CONT", unit) }

func (fx *fixture) kill(h *lab.Host, sig, unit string) {
	fx.t.Helper()
	h.Must(fx.t, "systemctl", "kill", "--signal="+sig, "--kill-who=main", unit)
}

// count returns how many lines with a text xlft's units logged on a host.
func (fx *fixture) count(h *lab.Host, what string) (n int) {
	fx.t.Helper()
	for line := range strings.Lines(ft.Journal(within(fx.t, soon), h)) {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}

// blinks stops the protector and then the receiver for less than the failure timeout: that ends nothing, and all that the
// guest sends is heard.
func (fx *fixture) blinks() {
	fx.t.Helper()
	before := fx.status(fx.home)
	if !before.Protected {
		fx.t.Fatalf("not protected: %s", before.State)
	}
	for _, p := range []struct {
		host *lab.Host
		unit string
	}{{fx.home, fx.protectorUnit()}, {fx.backup(), receiverUnit}} {
		k := fx.talk(20)
		fx.stop(p.host, p.unit)
		<-time.After(blink)
		fx.cont(p.host, p.unit)
		at := fx.status(fx.home).Epoch
		r := fx.await(fx.home, "two more epochs", func(r ft.Row) bool { return r.Epoch > at+1 || !r.Protected })
		if !r.Protected || r.Primary.Generation != before.Primary.Generation || r.Epoch < before.Epoch {
			fx.t.Errorf("%s stood still for %v: %s, generation %d, epoch %d; it was generation %d, epoch %d", p.unit, blink,
				r.State, r.Primary.Generation, r.Epoch, before.Primary.Generation, before.Epoch)
		}
		fx.complete(k.end())
	}
}

// onlyFrom checks that the other host sent nothing of the guest's.
func (fx *fixture) onlyFrom(h heard, host *lab.Host) {
	fx.t.Helper()
	for _, f := range h.frames {
		if f.Host != host {
			fx.t.Errorf("%s sent a frame of the guest, which runs on %s: % x", f.Host.Name(), host.Name(), f.Data[:min(len(f.Data), 60)])
			return
		}
	}
}

// A process that stands still, because its host gives it no time, and goes on. For less than the failure timeout that is
// nothing. A protector that stood still until the backup took over finds that out before anything of its copy of the
// domain is let out, and destroys that copy.
func TestProtectorStoodStill(t *testing.T) {
	fx := protected(t)
	if lab.HasTime() {
		fx.blinks()
	}

	from, to := fx.home, fx.backup()
	k := fx.talk(20)
	p := fx.pair()
	p.await(time.Now(), 20)
	fx.stop(from, fx.protectorUnit())
	stopped := time.Now()
	fx.awaitTakeover(to)
	first := p.await(stopped, 20)
	t.Logf("first replies after the stop: IPv4 %v, IPv6 %v", round(first[0]), round(first[1]))
	if lab.HasTime() {
		<-time.After(time.Until(stopped.Add(nap)))
	}
	if got := fx.domains(from); !slices.Equal(got, []string{fx.guest.Name}) {
		t.Errorf("%s has %q while its protector stands still: there is no second copy to keep silent", from.Name(), got)
	}
	woken := time.Now()
	fx.cont(from, fx.protectorUnit())
	fx.awaitDomains(from)
	fx.awaitClean(from)
	t.Logf("the protector stood still for %v; the copy and the gate were gone %v after it went on", round(woken.Sub(stopped)), round(time.Since(woken)))
	fx.expectLog(from, "the backup runs the domain")
	if r := fx.status(from); r.Role != "yielded" || r.Protected {
		t.Errorf("ft-status at the old primary: %+v", r)
	}
	p.await(time.Now(), 20)
	p.end()
	fx.oneVoice(k.end(), from, to)
	fx.awaitDomains(to, fx.guest.Name)
}

// A receiver stands still until its primary has given it up and runs the domain on alone. When it goes on it does not
// take the other's silence for a death: it reads first that its replica is to be destroyed. Then the domain is protected
// again.
func TestReceiverStoodStill(t *testing.T) {
	lab.Long(t)
	fx := protected(t)
	took := fx.count(fx.backup(), "took the domain over")
	k := fx.talk(10)
	p := fx.pair()
	p.await(time.Now(), 20)
	fx.stop(fx.backup(), receiverUnit)
	stopped := time.Now()
	fx.awaitUnprotected()
	fx.until(patience, func() error {
		if r := fx.status(fx.home); r.State != "connecting" {
			return fmt.Errorf("%s is %s", fx.guest.Name, r.State)
		}
		return nil
	})
	alone := time.Now()
	p.await(alone, 20)
	t.Logf("the domain ran on alone %v after the stop", round(alone.Sub(stopped)))
	<-time.After(time.Until(stopped.Add(nap)))
	p.end() // clients that never pause leave the copying little of the processor
	fx.cont(fx.backup(), receiverUnit)
	fx.await(fx.home, "protected again", isProtected)
	h := k.end()
	fx.onlyFrom(h, fx.home)
	fx.complete(h)
	if n := fx.count(fx.backup(), "took the domain over"); n != took {
		t.Errorf("%s took the domain over when its receiver went on", fx.backup().Name())
	}
	fx.awaitDomains(fx.home, fx.guest.Name)
	fx.awaitDomains(fx.backup(), fx.guest.Name+"--xlft")
}

// The same with hosts that fence each other. A host is fenced only when its process stood still for longer than the other
// side waits for it: failure_timeout for a protector, three times that for a receiver.
func TestFenceStoodStill(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	fx.fence(&s)
	fx.install(s)
	fx.boot()
	fx.protect()
	fenced := func(want ...string) {
		t.Helper()
		if off := fx.power.Fenced(); !slices.Equal(off, want) {
			t.Fatalf("switched off: %q, want %q", off, want)
		}
	}
	fx.blinks()
	fenced()

	// Suspected, and asked: what it answers when it goes on is what counts.
	k := fx.talk(10)
	fx.stop(fx.B, receiverUnit)
	fx.await(fx.A, "suspected", func(r ft.Row) bool { return r.State == "arbitrating" })
	fx.cont(fx.B, receiverUnit)
	fx.until(patience, func() error { // the copy that was given up is no protection
		if r := fx.status(fx.A); !r.Protected || fx.count(fx.A, "protection lost") == 0 {
			return fmt.Errorf("%s is %s", fx.guest.Name, r.State)
		}
		return nil
	})
	fenced()

	p := fx.pair()
	p.await(time.Now(), 20)
	fx.stop(fx.B, receiverUnit)
	stopped := time.Now()
	fx.until(patience, func() error {
		if len(fx.power.Fenced()) == 0 {
			return fmt.Errorf("the receiver of B has stood still for %v, and B is on", round(time.Since(stopped)))
		}
		return nil
	})
	after := time.Since(stopped)
	t.Logf("B was switched off %v after its receiver was stopped", round(after))
	if least := 3 * s.FailureTimeout; after < least-time.Second {
		t.Errorf("B was switched off after %v, want %v", after, least)
	}
	p.await(time.Now(), 20)
	h := k.end()
	fx.onlyFrom(h, fx.A)
	fx.complete(h)
	fenced("B")
	p.end()
	fx.revive(fx.B)
	fx.await(fx.A, "protected again", isProtected)

	// A protector that stands still is ended by its own host, which its backup asks, and has
	// a successor.
	k = fx.talk(10)
	p = fx.pair()
	p.await(time.Now(), 20)
	fx.stop(fx.A, fx.protectorUnit())
	stopped = time.Now()
	first := p.await(stopped.Add(time.Second), 20) // not what was let out before
	t.Logf("first replies after the protector was stopped: IPv4 %v, IPv6 %v", round(first[0]), round(first[1]))
	p.end()
	h = k.end()
	fx.onlyFrom(h, fx.A)
	fx.complete(h)
	fx.await(fx.A, "protected again", isProtected)
	fenced("B")
	fx.expectLog(fx.A, "was ended: its successor finds out")
	fx.awaitDomains(fx.A, fx.guest.Name)
}

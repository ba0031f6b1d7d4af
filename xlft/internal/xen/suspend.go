//go:build xen

package xen

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"xlft/evtchn"
	"xlft/xlft"
)

// Suspend has the domain suspend, see suspend.
func (g *Guest) Suspend(ctx context.Context) (asked time.Time, err error) {
	return suspend(ctx, g, &g.claim)
}

func (g *Guest) swap(old, word string) (string, error) {
	return g.h.xsSwap(fmt.Sprintf("/local/domain/%d/control/shutdown", g.d.ID), old, word)
}

func (g *Guest) awaitStopped() (xlft.GuestState, string, error) {
	switch st, reason := g.stopped(); {
	case st < 0:
		return 0, "", fmt.Errorf("wait for the suspend of domain %d: errno %d", g.d.ID, -st)
	case st == C.XLFT_SUSPENDED:
		return xlft.GuestSuspended, "", nil
	case st == C.XLFT_RUNS:
		return xlft.GuestRuns, "", nil
	default:
		return xlft.GuestOver, endReason(st, reason), nil
	}
}

// stopped waits until the domain does not run, at most stepSuspended, and returns
// its state. Without an event to wait for it asks again and again.
func (g *Guest) stopped() (C.int, int) {
	var reason C.int
	told := g.teller()
	if told == nil {
		st := C.xlft_wait_stopped(g.h.xch, g.id(), &reason, C.unsigned(stepSuspended.Microseconds()))
		return st, int(reason)
	}
	for limit := time.Now().Add(stepSuspended); ; {
		st := C.xlft_domain_state(g.h.xch, g.id(), &reason)
		if st != C.XLFT_RUNS || !time.Now().Before(limit) {
			return st, int(reason)
		}
		if err := told.wait(limit); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			g.unsubscribe() // it is broken; the other way works too
			return st, int(reason)
		}
	}
}

// A suspension tells when a domain has suspended: Xen sends an event then, to whoever
// subscribed last (XEN_DOMCTL_subscribe; __domain_finalise_shutdown in Xen's
// common/domain.c). Nobody else hears of that suspend: xenstored, and by it xl and the
// console daemon, are not woken for each checkpoint.
type suspension struct {
	dev    *evtchn.Device
	theirs evtchn.Port // the domain's end of the channel
	buf    [1]evtchn.Port
}

func (s *suspension) wait(limit time.Time) error {
	if err := s.dev.SetDeadline(limit); err != nil {
		return err
	}
	ports, err := s.dev.Wait(s.buf[:])
	if err != nil {
		return err
	}
	return s.dev.Unmask(ports...)
}

// subscribe makes the channel by which Xen can tell of the domain's suspends, see listen.
// It needs a port in the domain, which only the domain could free: its number is kept in
// xenstore, for the next subscriber.
func (g *Guest) subscribe() error {
	hv, err := evtchn.OpenHypervisor()
	if err != nil {
		return err
	}
	defer hv.Close()
	dev, err := evtchn.Open()
	if err != nil {
		return err
	}
	theirs, err := g.suspendPort(hv)
	if err == nil {
		_, err = dev.BindInterdomain(g.d.ID, theirs)
	}
	told := &suspension{dev: dev, theirs: theirs}
	if err == nil {
		err = g.listenBy(told, true)
	}
	if err == nil {
		err = g.listenBy(told, false)
	}
	if err != nil {
		dev.Close()
		return err
	}
	g.mu.Lock()
	g.told = told
	g.mu.Unlock()
	return nil
}

// listen has Xen tell this process of the domain's next suspend, or xenstored again, whose
// word libxl waits for. This process listens only while it waits for a suspend of its own:
// who else asks for one hears of it. A failure costs time: the domain is asked then.
func (g *Guest) listen(on bool) {
	if told := g.teller(); told != nil {
		g.listenBy(told, on) //nolint:errcheck // as above
	}
}

func (g *Guest) listenBy(told *suspension, on bool) error {
	var port evtchn.Port
	if on {
		port = told.theirs
	}
	if r, errno := C.xc_domain_subscribe_for_suspend(g.h.xch, g.id(), C.evtchn_port_t(port)); r != 0 {
		return fmt.Errorf("subscribe for the suspends of domain %d: %w%s", g.d.ID, errno, g.h.lastErrors())
	}
	return nil
}

// Inherit takes up what an earlier protector left: a suspend that it asked for, according to
// the file, and that Xen tells xenstored of suspends. The file is kept from now on.
func (g *Guest) Inherit(file, instance string) error {
	C.xc_domain_subscribe_for_suspend(g.h.xch, g.id(), 0)
	g.tellXenstore()
	return g.claim.keep(file, instance)
}

// helperDirs are where distributions and Xen's own build have the helper (LIBEXEC_BIN).
var helperDirs = []string{"/usr/lib/xen*/bin", "/usr/libexec/xen*/bin", "/usr/lib64/xen*/bin", "/usr/local/lib/xen*/bin", "/usr/local/libexec/xen*/bin"}

func (g *Guest) saver() int { return Saver("/proc", g.d.ID) }

// unsaved returns an error while another program saves or migrates the domain. It is for
// Save's goroutine.
func (g *Guest) unsaved() error {
	if g.savers == nil {
		return Unsaved(g.d.ID)
	}
	return savedBy(g.savers.saver())
}

// teller returns what tells of the domain's suspends, or nil.
func (g *Guest) teller() *suspension {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.told
}

// suspendPort returns a port of the domain that dom0 can bind. A domain has not many
// ports: this process makes one at most, also if its number can't be written.
func (g *Guest) suspendPort(hv *evtchn.Hypervisor) (evtchn.Port, error) {
	if g.port != 0 {
		if s, err := hv.Port(g.d.ID, g.port); err != nil || s.Kind == evtchn.Unbound && s.Domain == 0 {
			return g.port, err
		}
	}
	path := fmt.Sprintf("/local/domain/%d/xlft/suspend-port", g.d.ID)
	was, err := g.h.xsGet(path)
	if err != nil {
		return 0, err
	}
	if n, err := strconv.ParseUint(was, 10, 32); err == nil && n > 0 {
		s, err := hv.Port(g.d.ID, evtchn.Port(n))
		if err != nil {
			return 0, err
		}
		if s.Kind == evtchn.Unbound && s.Domain == 0 {
			return s.Port, nil
		}
	}
	p, err := hv.AllocUnbound(g.d.ID, 0)
	if err != nil {
		return 0, err
	}
	g.port = p
	_, err = g.h.xsSwap(path, was, strconv.FormatUint(uint64(p), 10))
	return p, err
}

// unsubscribe undoes subscribe.
func (g *Guest) unsubscribe() {
	g.listen(false)
	g.mu.Lock()
	told := g.told
	g.told = nil
	g.mu.Unlock()
	if told != nil {
		told.dev.Close()
	}
	g.tellXenstore()
}

// remind is how often xenstored is told that the domain runs, while no event tells it
// that the domain is suspended: it may have seen that when it looked at all domains.
const remind = time.Second

// Resume lets the domain return from its suspend hypercall as cancelled, so
// that it keeps its devices.
func (g *Guest) Resume() error {
	if r, err := C.xc_domain_resume(g.h.xch, g.id(), 1); r != 0 {
		return fmt.Errorf("resume domain %d: %w%s", g.d.ID, err, g.h.lastErrors())
	}
	g.claim.set(false)
	g.mu.Lock()
	due := g.told == nil || time.Since(g.reminded) > remind
	if due {
		g.reminded = time.Now()
	}
	g.mu.Unlock()
	if due {
		go g.tellXenstore() // the domain runs already, and nobody waits
	}
	return nil
}

// tellXenstore has xenstored forget that the domain was shut down, so that its next
// shutdown is told again.
func (g *Guest) tellXenstore() {
	g.h.xsmu.Lock()
	defer g.h.xsmu.Unlock()
	if g.h.xs != nil {
		C.xs_resume_domain(g.h.xs, C.uint(g.d.ID))
	}
}

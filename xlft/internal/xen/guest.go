//go:build xen

package xen

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"xlft/evtchn"
	"xlft/xlft"
)

const errAgain = syscall.EAGAIN

// Guest is a domain of this host as an xlft.Guest.
type Guest struct {
	h *Host
	d Domain

	// Of HoldMemory, in pages: the domain's own limit, and the one set instead; 0
	// if the memory is not held.
	limit, held uint64

	port evtchn.Port // made in the domain, for its suspends; 0: none yet

	claim  claim
	savers *saverWatch // of Save, and its goroutine's

	mu       sync.Mutex
	told     *suspension // nil: the domain is asked again and again whether it has suspended
	reminded time.Time   // when xenstored was told last that the domain runs
}

// Guest returns a domain as an xlft.Guest.
func (h *Host) Guest(d Domain) *Guest { return &Guest{h: h, d: d} }

func (g *Guest) id() C.uint32_t { return C.uint32_t(g.d.ID) }

func (g *Guest) Pause() error   { return g.h.Pause(g.d.ID) }
func (g *Guest) Destroy() error { return g.h.Destroy(g.d.ID) }

// Unpause undoes Pause. XEN_DOMCTL_unpausedomain refuses with EINVAL what is not
// there (domain_unpause_by_systemcontroller in Xen's common/domain.c).
func (g *Guest) Unpause() error {
	err := g.h.Unpause(g.d.ID)
	if errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("%w: %w", xlft.ErrNotPaused, err)
	}
	return err
}

// DirtyPages reads the count that log-dirty mode keeps.
func (g *Guest) DirtyPages() (uint64, error) {
	n := C.xlft_dirty_pages(g.h.xch, g.id())
	if n < 0 {
		return 0, fmt.Errorf("count dirty pages of domain %d: %w", g.d.ID, syscall.Errno(-n))
	}
	return uint64(n), nil
}

// State looks at the domain.
func (g *Guest) State() (xlft.GuestState, string, error) {
	st, reason, err := g.h.state(g.d.ID)
	switch {
	case err != nil:
		return 0, "", err
	case st == C.XLFT_RUNS:
		return xlft.GuestRuns, "", nil
	case st == C.XLFT_SUSPENDED && g.claim.holds(func() bool { return Unsaved(g.d.ID) != nil }):
		return xlft.GuestSuspended, "", nil
	case st == C.XLFT_SUSPENDED:
		return xlft.GuestSuspendedByOther, "", nil
	}
	return xlft.GuestOver, endReason(st, reason), nil
}

// endReason says how a domain ended; reasons are SHUTDOWN_xxx of xen/sched.h.
func endReason(st C.int, reason int) string {
	if st == C.XLFT_GONE {
		return "destroyed"
	}
	names := []string{"power-off", "reboot", "suspend", "crash", "watchdog", "soft reset"}
	if reason < len(names) {
		return names[reason]
	}
	return fmt.Sprintf("shutdown reason %d", reason)
}

// Save writes the domain's stream as a Remus save does: an HVM or PVH domain's by this
// project's own capture, a PV domain's by libxc, which knows how to translate its page
// tables.
func (g *Guest) Save(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	if err := g.subscribe(); err != nil && hooks.Polled != nil {
		hooks.Polled(err)
	}
	defer g.unsubscribe()
	g.savers = watchSavers(helperDirs, g.saver)
	defer func() { g.savers.close(); g.savers = nil }()
	switch hvm := C.xlft_domain_is_hvm(g.h.xch, g.id()); {
	case hvm < 0:
		return fmt.Errorf("look at domain %d: %w", g.d.ID, syscall.Errno(-hvm))
	case hvm == 0:
		return g.saveByLibxc(ctx, dst, hooks)
	}
	return g.capture(ctx, dst, hooks)
}

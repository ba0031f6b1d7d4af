//go:build xen

package xen

// #include "shim.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"unsafe"

	"xenbits.xenproject.org/git-http/xen.git/tools/golang/xenlight"

	"xlft/xlft"
)

// End looks at a domain. Gone: it was destroyed, or is about to be. The reason is
// that of a domain that is over and still there.
func (h *Host) End(domid uint32) (st xlft.GuestState, gone bool, reason string, err error) {
	state, why, err := h.state(domid)
	switch {
	case err != nil:
		return 0, false, "", err
	case state == C.XLFT_RUNS:
		return xlft.GuestRuns, false, "", nil
	case state == C.XLFT_SUSPENDED:
		return xlft.GuestSuspended, false, "", nil
	case state == C.XLFT_GONE:
		return xlft.GuestOver, true, "", nil
	}
	return xlft.GuestOver, false, endReason(state, why), nil
}

// Unfinished reports whether a domain is paused and has never run, as one is that
// is being built, or whose builder died.
func (h *Host) Unfinished(domid uint32) (bool, error) {
	n := C.xlft_unfinished(h.xch, C.uint32_t(domid))
	if n < 0 {
		return false, fmt.Errorf("ask whether domain %d has run: errno %d", domid, -n)
	}
	return n > 0, nil
}

// Paused reports whether a domain is paused, by whomever.
func (h *Host) Paused(domid uint32) (bool, error) {
	n := C.xlft_paused(h.xch, C.uint32_t(domid))
	if n < 0 {
		return false, fmt.Errorf("ask whether domain %d is paused: errno %d", domid, -n)
	}
	return n > 0, nil
}

// Create builds a domain and starts it.
func (h *Host) Create(config json.RawMessage) (uint32, error) {
	cj := C.CString(string(config))
	defer C.free(unsafe.Pointer(cj))
	domid := ^C.uint32_t(0) // INVALID_DOMID
	if rc := C.xlft_create(h.ctx(), cj, &domid); rc != 0 {
		return 0, fmt.Errorf("create the domain: %w", xenlight.Error(rc))
	}
	return uint32(domid), h.Unpause(uint32(domid))
}

// CoreDump writes a domain's memory to a file.
func (h *Host) CoreDump(domid uint32, file string) error {
	cf := C.CString(file)
	defer C.free(unsafe.Pointer(cf))
	if rc := C.xlft_core_dump(h.ctx(), C.uint32_t(domid), cf); rc != 0 {
		return fmt.Errorf("dump domain %d to %s: %w", domid, file, xenlight.Error(rc))
	}
	return nil
}

// SoftReset lets a domain begin anew with the memory that it has.
func (h *Host) SoftReset(domid uint32, config json.RawMessage) error {
	cj := C.CString(string(config))
	defer C.free(unsafe.Pointer(cj))
	if rc := C.xlft_soft_reset(h.ctx(), C.uint32_t(domid), cj); rc != 0 {
		return fmt.Errorf("soft reset of domain %d: %w", domid, xenlight.Error(rc))
	}
	return h.Unpause(domid)
}

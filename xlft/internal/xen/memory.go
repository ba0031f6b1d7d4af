//go:build xen

package xen

// #include "shim.h"
import "C"

import (
	"fmt"
	"strconv"

	"xlft/xlft"
)

// Memory returns the domain's pages and its limit. Pages that libxl's limit does
// not count, such as grant frames, are not counted.
func (g *Guest) Memory() (m xlft.Memory, err error) {
	var pages, limit C.uint64_t
	if rc := C.xlft_domain_memory(g.h.xch, g.id(), &pages, &limit); rc < 0 {
		return m, fmt.Errorf("ask for the memory of domain %d: errno %d", g.d.ID, -rc)
	}
	return xlft.Memory{Pages: uint64(pages), Limit: uint64(limit)}, nil
}

// HoldMemory sets the domain's limit one page below what it has: Xen lets a
// limit be below, and then gives no page. ReleaseMemory puts the limit back; after
// a protector that was killed the next one does.
func (g *Guest) HoldMemory() (m xlft.Memory, err error) {
	if m, err = g.Memory(); err != nil {
		return m, err
	}
	// A limit below libxl's may be one that an earlier protector left.
	usual, err := g.usualLimit()
	if g.limit = max(m.Limit, usual); err != nil && m.Limit < m.Pages {
		return m, err
	}
	if err := g.setLimit(m.Pages - 1); err != nil {
		return m, err
	}
	// A page that came between the two looks is no loss: it counts.
	if m, err = g.Memory(); err != nil {
		return m, err
	}
	if m.Limit != m.Pages-1 {
		if err := g.setLimit(m.Pages - 1); err != nil {
			return m, err
		}
		if m, err = g.Memory(); err != nil {
			return m, err
		}
	}
	g.held = m.Limit
	return m, nil
}

// ReleaseMemory gives the domain its limit back, unless somebody else, such as
// xl mem-set, has set one since.
func (g *Guest) ReleaseMemory() error {
	if g.held == 0 {
		return nil
	}
	held := g.held
	g.held = 0
	if m, err := g.Memory(); err != nil || m.Limit != held {
		return err
	}
	return g.setLimit(g.limit)
}

// Unpopulated returns how many of its pages an HVM or PVH domain may use without
// memory behind them yet (populate on demand).
func (g *Guest) Unpopulated() (uint64, error) {
	var n C.uint64_t
	if rc := C.xlft_domain_pod(g.h.xch, g.id(), &n); rc < 0 {
		return 0, fmt.Errorf("ask for the unpopulated pages of domain %d: errno %d", g.d.ID, -rc)
	}
	return uint64(n), nil
}

// usualLimit is what libxl sets for the domain's present target.
func (g *Guest) usualLimit() (uint64, error) {
	path := fmt.Sprintf("/local/domain/%d/memory/target", g.d.ID)
	target, err := strconv.ParseUint(g.h.XenstoreRead(path), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read xenstore %s: %w", path, err)
	}
	return (target + MaxMemSlack) / 4, nil
}

func (g *Guest) setLimit(pages uint64) error {
	if r, err := C.xc_domain_setmaxmem(g.h.xch, g.id(), C.uint64_t(pages*4)); r != 0 {
		return fmt.Errorf("set the memory limit of domain %d to %d KiB: %w%s", g.d.ID, pages*4, err, g.h.lastErrors())
	}
	return nil
}

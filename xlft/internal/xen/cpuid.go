//go:build xen

package xen

// #include "shim.h"
import "C"

import (
	"fmt"
	"unsafe"

	"xlft/xlft/wire"
)

// CPUID returns what a domain was told of its processor.
func (h *Host) CPUID(domid uint32) ([]wire.CPUIDLeaf, error) { return h.cpuid(C.int64_t(domid)) }

// MostCPUID returns the most that a domain on this host can be told; pv for PV
// domains, else for HVM and PVH.
func (h *Host) MostCPUID(pv bool) ([]wire.CPUIDLeaf, error) {
	if pv {
		return h.cpuid(C.XLFT_MOST_PV)
	}
	return h.cpuid(C.XLFT_MOST_HVM)
}

func (h *Host) cpuid(of C.int64_t) ([]wire.CPUIDLeaf, error) {
	var n C.uint32_t
	p, err := C.xlft_cpuid(h.xch, of, &n)
	if p == nil {
		return nil, fmt.Errorf("read CPU policy %d: %w%s", of, err, h.lastErrors())
	}
	defer C.free(unsafe.Pointer(p))
	var all []wire.CPUIDLeaf
	for _, l := range unsafe.Slice(p, n) {
		all = append(all, wire.CPUIDLeaf{
			Leaf: uint32(l.leaf), Sub: uint32(l.subleaf),
			A: uint32(l.a), B: uint32(l.b), C: uint32(l.c), D: uint32(l.d),
		})
	}
	return all, nil
}

//go:build xen

package xen

// #cgo LDFLAGS: -lxencall -lxenforeignmemory
// #include "shim.h"
// #include "capture.h"
// #include <xen/hvm/params.h>
// #include <xen/version.h>
import "C"

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
	"unsafe"

	"xlft/savestream"
	"xlft/savestream/capture"
	"xlft/xlft"
)

// Parameters of an HVM or PVH domain that its stream has, in libxc's order. Those that the
// domain itself may set at any time (hvm_allow_set_param in Xen's arch/x86/hvm/hvm.c) are
// read for each checkpoint, the others once.
var hvmParams = []struct {
	index C.uint32_t
	own   bool
}{
	{index: C.HVM_PARAM_STORE_PFN}, {index: C.HVM_PARAM_IOREQ_PFN}, {index: C.HVM_PARAM_BUFIOREQ_PFN},
	{index: C.HVM_PARAM_PAGING_RING_PFN}, {index: C.HVM_PARAM_MONITOR_RING_PFN}, {index: C.HVM_PARAM_SHARING_RING_PFN},
	{C.HVM_PARAM_VM86_TSS_SIZED, true}, {index: C.HVM_PARAM_CONSOLE_PFN}, {C.HVM_PARAM_ACPI_IOPORTS_LOCATION, true},
	{index: C.HVM_PARAM_VIRIDIAN}, {index: C.HVM_PARAM_IDENT_PT}, {C.HVM_PARAM_VM_GENERATION_ID_ADDR, true},
	{index: C.HVM_PARAM_IOREQ_SERVER_PFN}, {index: C.HVM_PARAM_NR_IOREQ_SERVER_PAGES},
	{C.HVM_PARAM_X87_FIP_WIDTH, true}, {index: C.HVM_PARAM_MCA_CAP},
}

// source is an HVM or PVH domain as a capture.Source.
type source struct {
	g   *Guest
	src *C.struct_xlft_source

	values  []uint64 // of hvmParams; nil: not read yet
	records []savestream.Record
	tsc     [24]byte
	params  []byte
}

// capture saves the domain by this project's own capture.
func (g *Guest) capture(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	src, err := g.source()
	if err != nil {
		return err
	}
	defer src.close()
	err = capture.Save(ctx, dst, src, capture.Hooks{Suspend: hooks.Suspend, Captured: hooks.Captured, Next: hooks.Next})
	switch {
	case errors.Is(err, capture.ErrLogTaken):
		return xlft.ErrLogTaken
	case errors.Is(err, capture.ErrGrown):
		return fmt.Errorf("%w: %w", xlft.ErrMemoryChanged, err)
	}
	return err
}

func (g *Guest) source() (*source, error) {
	src, err := C.xlft_source_open(g.h.xch, g.id())
	if src == nil {
		return nil, fmt.Errorf("memory for the capture of domain %d: %w", g.d.ID, err)
	}
	return &source{g: g, src: src}, nil
}

func (s *source) close() { C.xlft_source_close(s.src) }

// failed makes an error of a result below 0.
func (s *source) failed(rc C.int, format string, args ...any) error {
	if rc >= 0 {
		return nil
	}
	return fmt.Errorf("%s of domain %d: %w", fmt.Sprintf(format, args...), s.g.d.ID, syscall.Errno(-rc))
}

func (s *source) Head() (savestream.Header, []savestream.Record, error) {
	version, err := C.xc_version(s.g.h.xch, C.XENVER_version, nil)
	if version < 0 {
		return savestream.Header{}, nil, fmt.Errorf("ask for Xen's version: %w", err)
	}
	var leaves *C.xen_cpuid_leaf_t
	var msrs *C.xen_msr_entry_t
	var nrLeaves, nrMSRs C.uint32_t
	rc := C.xlft_policies(s.g.h.xch, C.int64_t(s.g.d.ID), &leaves, &nrLeaves, &msrs, &nrMSRs)
	if err := s.failed(rc, "read the CPU policy"); err != nil {
		return savestream.Header{}, nil, err
	}
	defer C.free(unsafe.Pointer(leaves))
	defer C.free(unsafe.Pointer(msrs))
	var static []savestream.Record
	if nrLeaves > 0 {
		static = append(static, savestream.Record{Type: savestream.X86CPUIDPolicy, Body: C.GoBytes(unsafe.Pointer(leaves), C.int(nrLeaves)*C.sizeof_xen_cpuid_leaf_t)})
	}
	if nrMSRs > 0 {
		static = append(static, savestream.Record{Type: savestream.X86MSRPolicy, Body: C.GoBytes(unsafe.Pointer(msrs), C.int(nrMSRs)*C.sizeof_xen_msr_entry_t)})
	}
	return savestream.Header{
		Version: 3, Type: savestream.HVM, XenMajor: uint32(version) >> 16 & 0xffff, XenMinor: uint32(version) & 0xffff,
	}, static, nil
}

func (s *source) Span() (uint64, error) {
	var n C.uint64_t
	rc := C.xlft_source_span(s.src, &n)
	return uint64(n), s.failed(rc, "ask for the size of the memory map")
}

// StartLog switches the log on. It is on already if another program uses it, which would
// miss pages if it began anew, or because a protector was killed.
func (s *source) StartLog() error {
	rc := C.xlft_source_log(s.src, 1)
	if rc == -C.EINVAL {
		if err := s.g.unsaved(); err != nil {
			return err
		}
		if rc = C.xlft_source_log(s.src, 0); rc == 0 {
			rc = C.xlft_source_log(s.src, 1)
		}
	}
	return s.failed(rc, "switch on the log of written pages")
}

// StopLog switches the log off. A domain that is gone has none.
func (s *source) StopLog() error {
	rc := C.xlft_source_log(s.src, 0)
	if rc == -C.ESRCH {
		return nil
	}
	return s.failed(rc, "switch off the log of written pages")
}

func (s *source) TakeLog(span uint64, suspended bool) ([]uint64, error) {
	var last C.int
	if suspended {
		last = 1
	}
	var log *C.uint64_t
	if rc := C.xlft_source_take(s.src, C.uint64_t(span), last, &log); rc < 0 {
		return nil, s.failed(rc, "read the log of written pages")
	}
	return unsafe.Slice((*uint64)(log), (span+63)/64), nil
}

func (s *source) Mark(pfn, n uint64) error {
	for most := uint64(1 << 20); n > 0; pfn, n = pfn+min(n, most), n-min(n, most) {
		if err := s.failed(C.xlft_source_mark(s.src, C.uint64_t(pfn), C.uint64_t(min(n, most))), "mark the log of written pages"); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) Marked(pfn uint64) (bool, error) {
	rc := C.xlft_source_marked(s.src, C.uint64_t(pfn))
	return rc > 0, s.failed(rc, "look at the log of written pages")
}

func (s *source) Types(pfns []uint64, types []savestream.PageType) error {
	batch := unsafe.Slice((*uint64)(C.xlft_source_batch(s.src)), capture.Batch)
	copy(batch, pfns)
	if rc := C.xlft_source_types(s.src, C.uint(len(pfns))); rc < 0 {
		return s.failed(rc, "ask for the types of pages")
	}
	for i := range pfns {
		types[i] = savestream.PageType(batch[i] >> C.XEN_DOMCTL_PFINFO_LTAB_SHIFT & 0xf)
	}
	return nil
}

func (s *source) Map(pfns []uint64) ([]byte, error) {
	var pages unsafe.Pointer
	var bad C.uint64_t
	rc := C.xlft_source_map(s.src, (*C.uint64_t)(&pfns[0]), C.uint(len(pfns)), &pages, &bad)
	if rc < 0 {
		return nil, s.failed(rc, "map page %#x", bad)
	}
	return unsafe.Slice((*byte)(pages), len(pfns)*savestream.PageSize), nil
}

func (s *source) Unmap(pages []byte) {
	C.xlft_source_unmap(s.src, unsafe.Pointer(&pages[0]), C.uint(len(pages)/savestream.PageSize))
}

func (s *source) State() ([]savestream.Record, error) {
	s.records = s.records[:0]
	add := func(t savestream.RecordType, body []byte) {
		s.records = append(s.records, savestream.Record{Type: t, Body: body})
	}

	var mode, khz, incarnation C.uint32_t
	var nsec C.uint64_t
	if rc, err := C.xc_domain_get_tsc_info(s.g.h.xch, s.g.id(), &mode, &nsec, &khz, &incarnation); rc < 0 {
		return nil, fmt.Errorf("read the TSC of domain %d: %w", s.g.d.ID, err)
	}
	le := binary.LittleEndian
	le.PutUint32(s.tsc[0:], uint32(mode))
	le.PutUint32(s.tsc[4:], uint32(khz))
	le.PutUint64(s.tsc[8:], uint64(nsec))
	le.PutUint32(s.tsc[16:], uint32(incarnation))
	add(savestream.X86TSCInfo, s.tsc[:])

	var context unsafe.Pointer
	var size C.uint32_t
	if rc := C.xlft_source_context(s.src, &context, &size); rc < 0 {
		return nil, s.failed(rc, "read the registers")
	}
	add(savestream.HVMContext, unsafe.Slice((*byte)(context), size))

	if err := s.readParams(); err != nil {
		return nil, err
	}
	s.params = append(s.params[:0], make([]byte, 8)...)
	count := uint32(0)
	for i, v := range s.values {
		if v == 0 {
			continue
		}
		s.params = le.AppendUint64(s.params, uint64(hvmParams[i].index))
		s.params = le.AppendUint64(s.params, v)
		count++
	}
	if count > 0 {
		le.PutUint32(s.params, count)
		add(savestream.HVMParams, s.params)
	}
	return s.records, nil
}

func (s *source) readParams() error {
	first := s.values == nil
	if first {
		s.values = make([]uint64, len(hvmParams))
	}
	for i, p := range hvmParams {
		if !first && !p.own {
			continue
		}
		var v C.uint64_t
		if rc, err := C.xc_hvm_param_get(s.g.h.xch, s.g.id(), p.index, &v); rc < 0 {
			s.values = nil
			return fmt.Errorf("read HVM parameter %d of domain %d: %w", p.index, s.g.d.ID, err)
		}
		s.values[i] = uint64(v)
	}
	return nil
}

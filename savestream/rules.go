package savestream

import "encoding/binary"

// rules is the order of records and the length of their bodies, by the spec and
// libxc's reader. Decoder, Encoder and Scanner share it, so they agree; each
// checks page tables itself.
//
// The spec wants HVM_PARAMS before HVM_CONTEXT. libxc writes them the other way
// round (x86_hvm_end_of_checkpoint) and its reader takes both, so do we.
type rules struct {
	form Form
	h    Header

	static  bool // STATIC_DATA_END was seen
	pvInfo  bool
	width   uint32 // bytes of a PV guest's word, from X86_PV_INFO
	p2m     bool
	pages   bool
	verify  bool
	context bool // a vCPU's registers came since the last boundary
	data    bool // any record at all came since the last boundary
	ended   bool

	checkpoints uint64
}

// record checks a record header: t may come now, with a body of n bytes.
func (r *rules) record(t RecordType, n uint32) error {
	if r.ended {
		return ErrTrailing
	}
	if n > MaxBody {
		return ErrTooLong
	}
	if !t.known() {
		if t.Optional() {
			return nil
		}
		return ErrMandatory
	}
	if err := r.domainType(t); err != nil {
		return err
	}
	if err := r.order(t); err != nil {
		return err
	}
	if err := bodyLength(t, n); err != nil {
		return err
	}

	switch t {
	case StaticDataEnd:
		r.static = true
	case X86PVP2MFrames:
		r.p2m = true
	case PageDataType:
		r.pages = true
	case Verify:
		r.verify = true
	case HVMContext:
		r.context = true
	case X86PVVCPUBasic:
		r.context = r.context || n > vcpuHeadLen
	}
	r.data = true

	switch t {
	case Checkpoint:
		r.checkpoints++
		r.context, r.data = false, false
	case End:
		r.ended = true
	}
	return nil
}

func (r *rules) domainType(t RecordType) error {
	switch t {
	case X86PVInfo, X86PVP2MFrames, X86PVVCPUBasic, X86PVVCPUExtended, X86PVVCPUXSave, X86PVVCPUMSRs, SharedInfo:
		if r.h.Type != PV {
			return ErrDomainType
		}
	case HVMContext, HVMParams:
		if r.h.Type != HVM {
			return ErrDomainType
		}
	case Toolstack:
		return ErrObsolete
	case CheckpointDirtyPFNList:
		return ErrForm
	case StaticDataEnd, X86CPUIDPolicy, X86MSRPolicy:
		if r.h.Version < 3 {
			return wrong(ErrVersion, "version 2 has no such record")
		}
	}
	return nil
}

func (r *rules) order(t RecordType) error {
	switch t {
	case X86CPUIDPolicy, X86MSRPolicy, StaticDataEnd:
		if r.static {
			return wrong(ErrOrder, "after STATIC_DATA_END")
		}
		if t == StaticDataEnd && r.h.Type == PV && !r.pvInfo {
			return wrong(ErrOrder, "no X86_PV_INFO yet")
		}
		return nil
	case X86PVInfo:
		// Version 2 has no STATIC_DATA_END; the first P2M frames imply it.
		if r.static || r.p2m {
			return wrong(ErrOrder, "after the static data")
		}
		if r.pvInfo {
			return wrong(ErrOrder, "second one")
		}
		return nil
	}
	// Everything else is memory, registers or a boundary.
	if r.h.Version >= 3 && !r.static {
		return wrong(ErrOrder, "no STATIC_DATA_END yet")
	}
	if r.h.Type == PV && !r.pvInfo {
		return wrong(ErrOrder, "no X86_PV_INFO yet")
	}

	switch t {
	case PageDataType:
		if r.h.Type == PV && !r.p2m {
			return wrong(ErrOrder, "no X86_PV_P2M_FRAMES yet")
		}
	case X86PVVCPUBasic, X86PVVCPUExtended, X86PVVCPUXSave, X86PVVCPUMSRs:
		if !r.pages {
			return wrong(ErrOrder, "no PAGE_DATA yet")
		}
	case Verify:
		if r.form >= Checkpointed || r.checkpoints > 0 {
			return wrong(ErrForm, "in a checkpointed stream")
		}
		if r.verify {
			return wrong(ErrOrder, "second one")
		}
	case Checkpoint:
		if r.form == Plain || r.verify {
			return wrong(ErrForm, "in a plain stream")
		}
		// Without registers libxc would resume old ones over new memory.
		if !r.context {
			return ErrIncomplete
		}
	case End:
		if !r.context && (r.data || r.checkpoints == 0) {
			return ErrIncomplete
		}
	}
	return nil
}

const (
	vcpuHeadLen  = 8  // vcpu_id, reserved
	tscInfoLen   = 24 // mode, khz, nsec, incarnation, reserved
	hvmParamLen  = 16 // index, value
	cpuidLeafLen = 24 // xen_cpuid_leaf_t: leaf, subleaf, eax, ebx, ecx, edx
	msrEntryLen  = 16 // xen_msr_entry_t: index, flags, value

	pageHeadLen  = 8 // count, reserved
	pageEntryLen = 8
)

// bodyLength checks a body by its length alone.
func bodyLength(t RecordType, n uint32) error {
	ok := true
	switch t {
	case End, Verify, Checkpoint, StaticDataEnd:
		ok = n == 0
	case PageDataType:
		ok = n >= pageHeadLen+pageEntryLen && n%8 == 0
	case X86PVInfo:
		ok = n == 8
	case X86PVP2MFrames:
		ok = n >= 16 && n%8 == 0
	case X86PVVCPUExtended:
		ok = n >= vcpuHeadLen && n <= vcpuHeadLen+128 // the domctl's union
	case X86PVVCPUXSave:
		ok = n == vcpuHeadLen || n >= vcpuHeadLen+16 // xcr0, xcr0_accum
	case X86PVVCPUMSRs:
		ok = n >= vcpuHeadLen && (n-vcpuHeadLen)%16 == 0 // index, reserved, value
	case X86PVVCPUBasic:
		ok = n >= vcpuHeadLen
	case SharedInfo:
		ok = n == PageSize
	case X86TSCInfo:
		ok = n == tscInfoLen
	case HVMContext:
		ok = n > 0
	case HVMParams:
		ok = n >= 8 && (n-8)%hvmParamLen == 0
	case X86CPUIDPolicy:
		ok = n > 0 && n%cpuidLeafLen == 0
	case X86MSRPolicy:
		ok = n > 0 && n%msrEntryLen == 0
	}
	if !ok {
		return wrong(ErrLength, "%d bytes", n)
	}
	return nil
}

// headLen returns how many bytes at the start of a body head reads. bodyLength
// has checked that the body has them.
func headLen(t RecordType) int {
	switch t {
	case PageDataType, X86PVInfo, X86PVP2MFrames, X86PVVCPUBasic, X86PVVCPUExtended, X86PVVCPUXSave, X86PVVCPUMSRs, HVMParams:
		return 8
	case X86TSCInfo:
		return tscInfoLen
	}
	return 0
}

// head checks the fixed fields at the start of a body of n bytes in all.
func (r *rules) head(t RecordType, n uint32, b []byte) error {
	le := binary.LittleEndian
	switch t {
	case PageDataType:
		_, err := pageDataRoom(n, b)
		return err

	case X86PVInfo:
		width, levels := b[0], b[1]
		if !(width == 4 && levels == 3 || width == 8 && levels == 4) {
			return wrong(ErrValue, "width %d with %d page table levels", width, levels)
		}
		if le.Uint16(b[2:]) != 0 || le.Uint32(b[4:]) != 0 {
			return ErrReserved
		}
		r.pvInfo, r.width = true, uint32(width)

	case X86PVP2MFrames:
		start, end := le.Uint32(b), le.Uint32(b[4:])
		if start > end {
			return wrong(ErrValue, "first pfn %#x after last %#x", start, end)
		}
		perFrame := PageSize / r.width
		if want := 8 + (uint64(end/perFrame)-uint64(start/perFrame)+1)*8; uint64(n) != want {
			return wrong(ErrLength, "%d bytes for pfns %#x to %#x, want %d", n, start, end, want)
		}

	case X86PVVCPUBasic, X86PVVCPUExtended, X86PVVCPUXSave, X86PVVCPUMSRs:
		if le.Uint32(b[4:]) != 0 {
			return ErrReserved
		}
		// Xen 4.6 to 4.8 could send empty contexts (erratum 1 of the spec).
		if t == X86PVVCPUBasic && n != vcpuHeadLen {
			want := uint32(vcpuHeadLen + 5168) // vcpu_guest_context_x86_64_t
			if r.width == 4 {
				want = vcpuHeadLen + 2800 // vcpu_guest_context_x86_32_t
			}
			if n != want {
				return wrong(ErrLength, "%d bytes, want %d", n, want)
			}
		}

	case X86TSCInfo:
		if le.Uint32(b[20:]) != 0 {
			return ErrReserved
		}

	case HVMParams:
		if le.Uint32(b[4:]) != 0 {
			return ErrReserved
		}
		if count := le.Uint32(b); uint64(n) != 8+uint64(count)*hvmParamLen {
			return wrong(ErrLength, "%d bytes for %d parameters", n, count)
		}
	}
	return nil
}

// pageDataRoom checks a PAGE_DATA body of n bytes that starts with b, and
// returns how many pages there is room for behind the pfn table.
func pageDataRoom(n uint32, b []byte) (pages uint32, err error) {
	count := binary.LittleEndian.Uint32(b)
	if binary.LittleEndian.Uint32(b[4:]) != 0 {
		return 0, ErrReserved
	}
	if count == 0 {
		return 0, wrong(ErrValue, "no pfns")
	}
	table := uint64(count) * pageEntryLen
	if table > uint64(n)-pageHeadLen {
		return 0, wrong(ErrLength, "%d bytes for %d pfns", n, count)
	}
	payload := n - pageHeadLen - uint32(table)
	if payload%PageSize != 0 || payload/PageSize > count {
		return 0, wrong(ErrLength, "%d bytes of pages for %d pfns", payload, count)
	}
	return payload / PageSize, nil
}

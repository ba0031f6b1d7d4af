package savestream

import (
	"encoding/binary"
	"fmt"
)

const (
	// PageSize is the size of a guest page; page_shift is 12 on x86.
	PageSize = 4096

	// MaxBody is the longest record body that libxc reads or writes, in bytes
	// (REC_LENGTH_MAX in xg_sr_stream_format.h).
	MaxBody = 128 << 20

	imageHeaderLen  = 24
	domainHeaderLen = 16
	recordHeaderLen = 8

	imageMarker = ^uint64(0)
	imageID     = 0x58454e46 // "XENF"
	optBigEnd   = 1 << 0
)

// A DomainType is the type field of the domain header.
type DomainType uint32

const (
	PV  DomainType = 1
	HVM DomainType = 2 // PVH domains too
)

func (t DomainType) String() string {
	switch t {
	case PV:
		return "x86 PV"
	case HVM:
		return "x86 HVM"
	}
	return fmt.Sprintf("domain type %#x", uint32(t))
}

// A Header is the image header and the domain header of a libxc stream.
type Header struct {
	Version  uint32 // of the format: 3, or 2 up to Xen 4.13
	Type     DomainType
	XenMajor uint32 // of the Xen that saved; 0: converted from a legacy stream
	XenMinor uint32
}

func (h Header) validate() error {
	if h.Version != 2 && h.Version != 3 {
		return wrong(ErrVersion, "%d", h.Version)
	}
	if h.Type != PV && h.Type != HVM {
		return wrong(ErrDomain, "%v", h.Type)
	}
	return nil
}

// AppendTo appends the 40 bytes of both headers to b.
func (h Header) AppendTo(b []byte) []byte {
	// The image header is big-endian, all that follows little-endian.
	b = binary.BigEndian.AppendUint64(b, imageMarker)
	b = binary.BigEndian.AppendUint32(b, imageID)
	b = binary.BigEndian.AppendUint32(b, h.Version)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // options, reserved

	b = binary.LittleEndian.AppendUint32(b, uint32(h.Type))
	b = binary.LittleEndian.AppendUint16(b, 12) // page_shift
	b = append(b, 0, 0)                         // reserved
	b = binary.LittleEndian.AppendUint32(b, h.XenMajor)
	return binary.LittleEndian.AppendUint32(b, h.XenMinor)
}

func parseImageHeader(b []byte) (version uint32, err error) {
	be := binary.BigEndian
	if m := be.Uint64(b); m != imageMarker {
		return 0, wrong(ErrMagic, "marker %#016x", m)
	}
	if id := be.Uint32(b[8:]); id != imageID {
		return 0, wrong(ErrMagic, "id %#08x", id)
	}
	version = be.Uint32(b[12:])
	if version != 2 && version != 3 {
		return 0, wrong(ErrVersion, "%d", version)
	}
	opts := be.Uint16(b[16:])
	if opts&optBigEnd != 0 {
		return 0, ErrEndian
	}
	if opts != 0 || be.Uint16(b[18:]) != 0 || be.Uint32(b[20:]) != 0 {
		return 0, ErrReserved
	}
	return version, nil
}

func (h *Header) parseDomainHeader(b []byte) error {
	le := binary.LittleEndian
	h.Type = DomainType(le.Uint32(b))
	if h.Type != PV && h.Type != HVM {
		return wrong(ErrDomain, "%v", h.Type)
	}
	if shift := le.Uint16(b[4:]); shift != 12 {
		return wrong(ErrDomain, "page_shift %d", shift)
	}
	if le.Uint16(b[6:]) != 0 {
		return ErrReserved
	}
	h.XenMajor = le.Uint32(b[8:])
	h.XenMinor = le.Uint32(b[12:])
	return nil
}

// A RecordType says what a libxc record holds. Bit 31 marks records that a
// reader may pass over.
type RecordType uint32

const (
	End                    RecordType = 0x00
	PageDataType           RecordType = 0x01
	X86PVInfo              RecordType = 0x02
	X86PVP2MFrames         RecordType = 0x03
	X86PVVCPUBasic         RecordType = 0x04
	X86PVVCPUExtended      RecordType = 0x05
	X86PVVCPUXSave         RecordType = 0x06
	SharedInfo             RecordType = 0x07
	X86TSCInfo             RecordType = 0x08
	HVMContext             RecordType = 0x09
	HVMParams              RecordType = 0x0a
	Toolstack              RecordType = 0x0b // deprecated, refused
	X86PVVCPUMSRs          RecordType = 0x0c
	Verify                 RecordType = 0x0d
	Checkpoint             RecordType = 0x0e
	CheckpointDirtyPFNList RecordType = 0x0f // only on COLO's back channel, refused
	StaticDataEnd          RecordType = 0x10
	X86CPUIDPolicy         RecordType = 0x11
	X86MSRPolicy           RecordType = 0x12

	optionalBit = 1 << 31
)

var recordNames = [...]string{
	"END", "PAGE_DATA", "X86_PV_INFO", "X86_PV_P2M_FRAMES", "X86_PV_VCPU_BASIC",
	"X86_PV_VCPU_EXTENDED", "X86_PV_VCPU_XSAVE", "SHARED_INFO", "X86_TSC_INFO",
	"HVM_CONTEXT", "HVM_PARAMS", "TOOLSTACK", "X86_PV_VCPU_MSRS", "VERIFY",
	"CHECKPOINT", "CHECKPOINT_DIRTY_PFN_LIST", "STATIC_DATA_END",
	"X86_CPUID_POLICY", "X86_MSR_POLICY",
}

func (t RecordType) String() string {
	if t.known() {
		return recordNames[t]
	}
	return fmt.Sprintf("0x%08x", uint32(t))
}

// Optional reports whether a reader that does not know t may pass over it.
func (t RecordType) Optional() bool { return t&optionalBit != 0 }

func (t RecordType) known() bool { return uint64(t) < uint64(len(recordNames)) }

// A Record is one record of a libxc stream.
type Record struct {
	Type   RecordType
	Offset int64  // of the record's header from the start of the stream; not encoded
	Body   []byte // without padding
}

// A Form says how a stream is cut into consistent pieces.
type Form uint8

const (
	AnyForm      Form = iota // decided by the first CHECKPOINT or VERIFY
	Plain                    // one state, ended by END: save to a file, migration
	Checkpointed             // a state at each CHECKPOINT: Remus
	COLO                     // Checkpointed, and libxl CHECKPOINT_STATE after each
)

func (f Form) String() string {
	return [...]string{"any", "plain", "checkpointed", "COLO"}[f]
}

func align8[T int | int64 | uint32](n T) T { return (n + 7) &^ 7 }

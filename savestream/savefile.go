package savestream

import (
	"bytes"
	"encoding/binary"
	"io"
)

const (
	saveMagic     = "Xen saved domain, xl format\n \x00 \r"
	saveByteOrder = 0x01020304
	saveHeaderLen = 32 + 4*4

	saveFlagJSON     = 1 << 0
	saveFlagStreamV2 = 1 << 1

	// MaxSaveData bounds the optional data of an xl save file, which is a
	// domain's configuration. xl has no bound.
	MaxSaveData = 16 << 20
)

// A SaveHeader is what "xl save" and "xl migrate" put before the libxl stream
// (struct save_file_header in tools/xl/xl.h).
type SaveHeader struct {
	Mandatory uint32 // flags; unknown ones make a reader refuse
	Optional  uint32 // flags
	Config    []byte // as written: libxl's JSON with a final NUL, or xl.cfg text
	Rest      []byte // optional data behind the config, of a newer xl
}

// JSON reports whether Config is libxl's JSON and not xl.cfg text.
func (h SaveHeader) JSON() bool { return h.Mandatory&saveFlagJSON != 0 }

// ReadSaveHeader reads the header of an xl save file. The libxl stream is what
// follows in r.
func ReadSaveHeader(r io.Reader) (SaveHeader, error) {
	in := &input{r: r}
	h, err := readSaveHeader(in)
	return h, err
}

func readSaveHeader(in *input) (SaveHeader, error) {
	var b [saveHeaderLen]byte
	off := in.off
	fail := func(err error) (SaveHeader, error) {
		return SaveHeader{}, &FormatError{off, PartSaveHeader, err}
	}
	if err := in.full(b[:]); err != nil {
		return SaveHeader{}, located(err, off, PartSaveHeader)
	}
	if string(b[:len(saveMagic)]) != saveMagic {
		return fail(ErrMagic)
	}
	le := binary.LittleEndian
	switch le.Uint32(b[32:]) {
	case saveByteOrder:
	case 0x04030201:
		return fail(ErrEndian)
	default:
		return fail(wrong(ErrValue, "byte order %#08x", le.Uint32(b[32:])))
	}
	h := SaveHeader{Mandatory: le.Uint32(b[36:]), Optional: le.Uint32(b[40:])}
	if bad := h.Mandatory &^ (saveFlagJSON | saveFlagStreamV2); bad != 0 {
		return fail(wrong(ErrMandatory, "flags %#x", bad))
	}
	if h.Mandatory&saveFlagStreamV2 == 0 {
		return fail(ErrLegacy)
	}

	n := le.Uint32(b[44:])
	if n == 0 {
		return h, nil
	}
	if n > MaxSaveData {
		return fail(wrong(ErrLength, "%d bytes of optional data", n))
	}
	data, err := in.bytes(int(n))
	if err != nil {
		return SaveHeader{}, located(err, off, PartSaveHeader)
	}
	if n < 4 || le.Uint32(data) > n-4 {
		return fail(wrong(ErrLength, "config longer than the %d bytes of optional data", n))
	}
	size := le.Uint32(data)
	h.Config = bytes.Clone(data[4 : 4+size])
	h.Rest = bytes.Clone(data[4+size:])
	return h, nil
}

// AppendTo appends the header, as xl would write it, to b.
func (h SaveHeader) AppendTo(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, saveMagic...)
	b = le.AppendUint32(b, saveByteOrder)
	b = le.AppendUint32(b, h.Mandatory|saveFlagStreamV2)
	b = le.AppendUint32(b, h.Optional)
	if h.Config == nil && h.Rest == nil {
		return le.AppendUint32(b, 0)
	}
	b = le.AppendUint32(b, uint32(4+len(h.Config)+len(h.Rest)))
	b = le.AppendUint32(b, uint32(len(h.Config)))
	b = append(b, h.Config...)
	return append(b, h.Rest...)
}

package savestream

import (
	"errors"
	"fmt"
	"io"
)

// What can be wrong with a stream. A FormatError wraps one of these, or
// io.ErrUnexpectedEOF where the stream stops short.
var (
	ErrMagic      = errors.New("not a stream of this kind")
	ErrVersion    = errors.New("unsupported version")
	ErrEndian     = errors.New("big-endian stream")
	ErrLegacy     = errors.New("legacy stream of Xen 4.5 or older")
	ErrDomain     = errors.New("unsupported domain header")
	ErrDomainType = errors.New("not a record of this type of domain")
	ErrMandatory  = errors.New("unknown mandatory record")
	ErrObsolete   = errors.New("record type no longer in use")
	ErrTooLong    = errors.New("body over 128 MiB")
	ErrLength     = errors.New("wrong length")
	ErrOrder      = errors.New("out of order")
	ErrForm       = errors.New("not a record of this form of stream")
	ErrIncomplete = errors.New("no vCPU context since the last boundary")
	ErrReserved   = errors.New("reserved bits set")
	ErrPadding    = errors.New("padding not zero")
	ErrValue      = errors.New("bad value")
	ErrPageType   = errors.New("unknown page type")
	ErrTrailing   = errors.New("bytes after END")
)

// A FormatError says where a stream breaks its format.
type FormatError struct {
	Offset int64        // of the record or header in the stream, in bytes
	Type   fmt.Stringer // RecordType, LibxlType or Part
	Err    error
}

func (e *FormatError) Error() string {
	if p, ok := e.Type.(Part); ok {
		return fmt.Sprintf("savestream: %s at offset %d: %v", string(p), e.Offset, e.Err)
	}
	layer := ""
	if _, ok := e.Type.(LibxlType); ok {
		layer = "libxl "
	}
	return fmt.Sprintf("savestream: %s%s record at offset %d: %v", layer, e.Type, e.Offset, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// A Part names a piece of a stream that is not a record.
type Part string

func (p Part) String() string { return string(p) }

const (
	PartImageHeader  Part = "image header"
	PartDomainHeader Part = "domain header"
	PartRecordHeader Part = "record header"
	PartLibxlHeader  Part = "libxl header"
	PartSaveHeader   Part = "xl save header"
	PartEnd          Part = "end of stream"
)

// wrong adds the details to one of the sentinels above.
func wrong(err error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", err, fmt.Sprintf(format, args...))
}

// short turns the end of input inside a stream into io.ErrUnexpectedEOF.
func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

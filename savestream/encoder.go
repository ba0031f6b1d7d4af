package savestream

import (
	"encoding/binary"
	"io"
)

// An Encoder writes a libxc stream. It refuses what a Decoder would refuse, so
// it is also the way to build small streams for tests.
type Encoder struct {
	// Form, if set before the first record, refuses records of another form.
	Form Form

	w       io.Writer
	rules   rules
	buf     []byte
	off     int64
	started bool
	err     error
}

// NewEncoder returns an Encoder that writes a stream with header h to w. The
// header goes out with the first record.
func NewEncoder(w io.Writer, h Header) *Encoder {
	return &Encoder{w: w, rules: rules{h: h}}
}

// Offset returns how many bytes were written.
func (e *Encoder) Offset() int64 { return e.off }

// Encode writes one record in a single Write and adds its padding.
func (e *Encoder) Encode(rec Record) error {
	if e.err != nil {
		return e.err
	}
	buf, next, err := e.frame(rec)
	if err != nil {
		return &FormatError{e.off, rec.Type, err}
	}
	e.buf, e.rules, e.started = buf, next, true
	n, err := e.w.Write(buf)
	e.off += int64(n)
	e.err = err
	return err
}

// frame builds the bytes of rec and the state after it. A record that is
// refused leaves the stream as it was.
func (e *Encoder) frame(rec Record) ([]byte, rules, error) {
	next := e.rules
	b := e.buf[:0]
	if !e.started {
		next.form = e.Form
		if err := next.h.validate(); err != nil {
			return nil, next, err
		}
		b = next.h.AppendTo(b)
	}
	if len(rec.Body) > MaxBody {
		return nil, next, ErrTooLong
	}
	n := uint32(len(rec.Body))
	if err := next.record(rec.Type, n); err != nil {
		return nil, next, err
	}
	if err := next.head(rec.Type, n, rec.Body); err != nil {
		return nil, next, err
	}
	if rec.Type == PageDataType {
		if _, err := ParsePageData(rec.Body); err != nil {
			return nil, next, err
		}
	}
	return appendRecord(b, uint32(rec.Type), rec.Body), next, nil
}

// WritePages writes a PAGE_DATA record; data is as for AppendPageData.
func (e *Encoder) WritePages(entries []PageEntry, data []byte) error {
	body, err := AppendPageData(nil, entries, data)
	if err != nil {
		return &FormatError{e.off, PageDataType, err}
	}
	return e.Encode(Record{Type: PageDataType, Body: body})
}

// AppendRecord appends a libxc record to b: header, body and padding. Nothing is checked.
func AppendRecord(b []byte, typ RecordType, body []byte) []byte {
	return appendRecord(b, uint32(typ), body)
}

func appendRecord(b []byte, typ uint32, body []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	var zero [7]byte
	return append(b, zero[:align8(len(body))-len(body)]...)
}

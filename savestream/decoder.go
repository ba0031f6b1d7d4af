package savestream

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// A Decoder reads a libxc stream record by record and checks all of it.
//
// libxc never ends a checkpointed stream with END: it stops after a CHECKPOINT
// (xg_sr_save.c), and Next then returns io.ErrUnexpectedEOF. AtCheckpoint
// reports whether the input stopped on a boundary.
type Decoder struct {
	// Form, if set before the first call of Next, refuses streams of another
	// form.
	Form Form

	in      input
	rules   rules
	started bool
	err     error
}

// NewDecoder returns a Decoder of the libxc stream in r. It reads no more of r
// than the records it returns.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{in: input{r: r}}
}

// Header returns the headers of the stream. It reads them if Next has not.
func (d *Decoder) Header() (Header, error) {
	if err := d.start(); err != nil {
		return Header{}, err
	}
	return d.rules.h, nil
}

// Offset returns how many bytes of the stream were read.
func (d *Decoder) Offset() int64 { return d.in.off }

// Checkpoints returns the number of CHECKPOINT records returned so far.
func (d *Decoder) Checkpoints() uint64 { return d.rules.checkpoints }

// AtCheckpoint reports whether the last record was a CHECKPOINT: the stream so
// far is a complete state, even if nothing follows.
func (d *Decoder) AtCheckpoint() bool {
	return d.rules.checkpoints > 0 && !d.rules.data && !d.in.partial
}

// Next returns the next record. Its Body is valid until the following call.
// Next returns io.EOF after END and nowhere else; a stream that stops short is
// io.ErrUnexpectedEOF. An error is final.
func (d *Decoder) Next() (Record, error) {
	if err := d.start(); err != nil {
		return Record{}, err
	}
	if d.rules.ended {
		return Record{}, io.EOF
	}
	rec, err := d.next()
	if err != nil {
		d.err = err
		return Record{}, err
	}
	return rec, nil
}

// Trailing reports bytes after END as ErrTrailing. On a pipe it waits for the
// writer to close its end.
func (d *Decoder) Trailing() error { return d.in.trailing() }

func (d *Decoder) start() error {
	if d.started || d.err != nil {
		return d.err
	}
	d.started = true
	d.rules.form = d.Form
	d.err = d.headers()
	return d.err
}

func (d *Decoder) headers() error {
	var b [imageHeaderLen]byte
	off := d.in.off
	if err := d.in.full(b[:]); err != nil {
		return located(err, off, PartImageHeader)
	}
	version, err := parseImageHeader(b[:])
	if err != nil {
		return &FormatError{off, PartImageHeader, err}
	}
	d.rules.h.Version = version

	off = d.in.off
	if err := d.in.full(b[:domainHeaderLen]); err != nil {
		return located(err, off, PartDomainHeader)
	}
	if err := d.rules.h.parseDomainHeader(b[:]); err != nil {
		return &FormatError{off, PartDomainHeader, err}
	}
	return nil
}

func (d *Decoder) next() (Record, error) {
	off := d.in.off
	typ, n, err := d.in.recordHeader()
	if err != nil {
		return Record{}, located(err, off, PartRecordHeader)
	}
	t := RecordType(typ)
	fail := func(err error) (Record, error) { return Record{}, &FormatError{off, t, err} }

	if err := d.rules.record(t, n); err != nil {
		return fail(err)
	}
	body, err := d.in.recordBody(n)
	if err != nil {
		if isFormat(err) {
			return fail(err)
		}
		return Record{}, located(err, off, t)
	}
	if err := d.rules.head(t, n, body); err != nil {
		return fail(err)
	}
	if t == PageDataType {
		if _, err := ParsePageData(body); err != nil {
			return fail(err)
		}
	}
	return Record{t, off, body}, nil
}

// input reads records' frames, which libxc and libxl streams share.
type input struct {
	r       io.Reader
	off     int64
	body    []byte
	partial bool // stopped inside a frame
	head    [recordHeaderLen]byte
}

func (in *input) full(b []byte) error {
	n, err := io.ReadFull(in.r, b)
	in.off += int64(n)
	in.partial = err != nil && n > 0
	return short(err)
}

func (in *input) recordHeader() (typ, n uint32, err error) {
	if err := in.full(in.head[:]); err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint32(in.head[0:]), binary.LittleEndian.Uint32(in.head[4:]), nil
}

// recordBody reads a body of n bytes and its padding.
func (in *input) recordBody(n uint32) ([]byte, error) {
	b, err := in.bytes(int(align8(int64(n))))
	if err != nil {
		return nil, err
	}
	for _, c := range b[n:] {
		if c != 0 {
			return nil, ErrPadding
		}
	}
	return b[:n:n], nil
}

// bytes reads n bytes into a buffer that the next call reuses.
func (in *input) bytes(n int) ([]byte, error) {
	// Grow as bytes arrive, so that memory follows them and not the length a
	// peer claims.
	const chunk = 1 << 20
	in.body = in.body[:0]
	for len(in.body) < n {
		have := len(in.body)
		want := min(n-have, max(cap(in.body)-have, chunk))
		in.body = slices.Grow(in.body, want)[:have+want]
		if err := in.full(in.body[have:]); err != nil {
			in.partial = true
			return nil, err
		}
	}
	return in.body, nil
}

func (in *input) trailing() error {
	var b [1]byte
	off := in.off
	switch err := in.full(b[:]); err {
	case nil:
		return &FormatError{off, PartEnd, ErrTrailing}
	case io.ErrUnexpectedEOF:
		return nil
	default:
		return located(err, off, PartEnd)
	}
}

func isFormat(err error) bool { return err == ErrPadding }

// located adds where reading stopped: a FormatError if the stream is too short,
// the reader's own error otherwise.
func located(err error, off int64, what fmt.Stringer) error {
	if err == io.ErrUnexpectedEOF {
		return &FormatError{off, what, err}
	}
	return fmt.Errorf("savestream: read %s at offset %d: %w", what, off, err)
}

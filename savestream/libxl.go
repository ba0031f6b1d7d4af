package savestream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	libxlHeaderLen = 16
	libxlIdent     = 0x4c6962786c466d74 // "LibxlFmt"
	libxlVersion   = 2

	libxlOptBigEnd = 1 << 0
	libxlOptLegacy = 1 << 1

	emulatorHeadLen = 8 // emulator_id, index

	// MaxLibxlBody bounds libxl records. libxl itself has no bound; a device
	// model's state with a video memory of its own stays far below.
	MaxLibxlBody = 1 << 30
)

// A LibxlType says what a libxl record holds. Bit 31 marks records that a
// reader may pass over; libxl itself does not.
type LibxlType uint32

const (
	LibxlEnd             LibxlType = 0
	LibxcContext         LibxlType = 1 // the libxc stream follows
	EmulatorXenstoreData LibxlType = 2
	EmulatorContext      LibxlType = 3
	CheckpointEnd        LibxlType = 4
	CheckpointState      LibxlType = 5 // COLO only
)

var libxlNames = [...]string{
	"END", "LIBXC_CONTEXT", "EMULATOR_XENSTORE_DATA", "EMULATOR_CONTEXT",
	"CHECKPOINT_END", "CHECKPOINT_STATE",
}

func (t LibxlType) String() string {
	if t.known() {
		return libxlNames[t]
	}
	return fmt.Sprintf("0x%08x", uint32(t))
}

// Optional reports whether a reader that does not know t may pass over it.
func (t LibxlType) Optional() bool { return t&optionalBit != 0 }

func (t LibxlType) known() bool { return uint64(t) < uint64(len(libxlNames)) }

// A LibxlRecord is one record of the libxl layer.
type LibxlRecord struct {
	Type   LibxlType
	Offset int64  // from the start of the libxl stream; not encoded
	Body   []byte // without padding
}

// An Item is one record of either layer of a libxl stream. One of the two is
// set.
type Item struct {
	Libxl *LibxlRecord
	Libxc *Record // Offset counts from the start of the libxl stream
}

// An EmulatorHeader starts the body of both EMULATOR records.
type EmulatorHeader struct {
	ID    uint32 // 0 unknown, 1 QEMU traditional, 2 QEMU upstream
	Index uint32
}

// ParseEmulator splits the body of an EMULATOR record.
func ParseEmulator(body []byte) (h EmulatorHeader, data []byte, err error) {
	if len(body) < emulatorHeadLen {
		return h, nil, wrong(ErrLength, "%d bytes", len(body))
	}
	h.ID = binary.LittleEndian.Uint32(body)
	h.Index = binary.LittleEndian.Uint32(body[4:])
	if h.ID > 2 {
		return h, nil, wrong(ErrValue, "emulator %d", h.ID)
	}
	return h, body[emulatorHeadLen:], nil
}

// ParseXenstoreData splits the data of EMULATOR_XENSTORE_DATA into keys and
// values in turn.
func ParseXenstoreData(data []byte) ([]string, error) {
	if len(data) == 0 {
		return nil, nil
	}
	if data[len(data)-1] != 0 {
		return nil, wrong(ErrValue, "xenstore data not NUL terminated")
	}
	parts := bytes.Split(data[:len(data)-1], []byte{0})
	if len(parts)%2 != 0 {
		return nil, wrong(ErrValue, "xenstore key without value")
	}
	kv := make([]string, len(parts))
	for i, p := range parts {
		kv[i] = string(p)
	}
	return kv, nil
}

// layer is the layer that the next record belongs to.
type layer uint8

const (
	layerLibxl      layer = iota
	layerLibxc            // from LIBXC_CONTEXT or CHECKPOINT_END to CHECKPOINT or END
	layerCheckpoint       // libxl's records between CHECKPOINT and CHECKPOINT_END
	layerState            // COLO: CHECKPOINT_STATE after CHECKPOINT_END
)

// libxlRules is the order of libxl records. The spec is brief on it; these are
// the orders that libxl_stream_write.c produces.
type libxlRules struct {
	form   Form
	layer  layer
	libxc  bool // LIBXC_CONTEXT was seen
	ended  bool
	seenPV bool // the libxc stream is of a PV domain
	remus  bool // the libxc stream had checkpoints
}

func (r *libxlRules) record(t LibxlType, body []byte) error {
	if r.ended {
		return ErrTrailing
	}
	if !t.known() {
		if t.Optional() {
			return nil
		}
		return ErrMandatory
	}
	if r.layer == layerState && t != CheckpointState {
		return wrong(ErrOrder, "CHECKPOINT_STATE expected")
	}
	switch t {
	case LibxlEnd, LibxcContext, CheckpointEnd:
		if len(body) != 0 {
			return wrong(ErrLength, "%d bytes", len(body))
		}
	}

	switch t {
	case LibxlEnd:
		if r.layer == layerCheckpoint {
			return wrong(ErrOrder, "inside a checkpoint")
		}
		if !r.libxc {
			return wrong(ErrOrder, "no LIBXC_CONTEXT yet")
		}
		r.ended = true
	case LibxcContext:
		if r.libxc {
			return wrong(ErrOrder, "second one")
		}
		r.libxc, r.layer = true, layerLibxc
	case EmulatorXenstoreData, EmulatorContext:
		if !r.libxc {
			return wrong(ErrOrder, "no LIBXC_CONTEXT yet")
		}
		if r.seenPV {
			return ErrDomainType
		}
		_, data, err := ParseEmulator(body)
		if err != nil {
			return err
		}
		if t == EmulatorXenstoreData {
			if _, err := ParseXenstoreData(data); err != nil {
				return err
			}
		}
	case CheckpointEnd:
		if r.layer != layerCheckpoint {
			return wrong(ErrOrder, "outside a checkpoint")
		}
		r.layer = layerLibxc
		if r.form == COLO {
			r.layer = layerState
		}
	case CheckpointState:
		if r.layer != layerState {
			return wrong(ErrForm, "only COLO has it, after CHECKPOINT_END")
		}
		// The one that goes from primary to secondary is CHECKPOINT_NEW.
		if len(body) != 4 {
			return wrong(ErrLength, "%d bytes", len(body))
		}
		if id := binary.LittleEndian.Uint32(body); id != 0 {
			return wrong(ErrValue, "control id %d", id)
		}
		r.layer = layerLibxc
	}
	return nil
}

// libxcBoundary follows the libxc layer over one of its records.
func (r *libxlRules) libxcBoundary(t RecordType) {
	switch t {
	case Checkpoint:
		r.layer, r.remus = layerCheckpoint, true
	case End:
		r.layer = layerLibxl
	}
}

func parseLibxlHeader(b []byte) (legacy bool, err error) {
	if id := binary.BigEndian.Uint64(b); id != libxlIdent {
		return false, wrong(ErrMagic, "ident %#016x", id)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != libxlVersion {
		return false, wrong(ErrVersion, "%d", v)
	}
	opts := binary.BigEndian.Uint32(b[12:])
	if opts&libxlOptBigEnd != 0 {
		return false, ErrEndian
	}
	if opts&^libxlOptLegacy != 0 {
		return false, wrong(ErrReserved, "options %#x", opts)
	}
	return opts&libxlOptLegacy != 0, nil
}

// A LibxlDecoder reads a libxl stream with the libxc stream inside it, as one
// flat sequence of records. In a checkpointed stream libxl's records up to
// CHECKPOINT_END come after each libxc CHECKPOINT, then libxc's go on.
type LibxlDecoder struct {
	// Form, if set before the first Next, refuses streams of another form. COLO
	// streams are understood only if it is set to COLO.
	Form Form

	xc      *Decoder
	rules   libxlRules
	started bool
	legacy  bool
	err     error
}

// NewLibxlDecoder returns a LibxlDecoder of the stream in r. It reads no more
// of r than the records it returns.
func NewLibxlDecoder(r io.Reader) *LibxlDecoder {
	return &LibxlDecoder{xc: NewDecoder(r)}
}

// Legacy reports whether the header says that the stream was converted from
// the format of Xen 4.5 or older.
func (d *LibxlDecoder) Legacy() (bool, error) {
	err := d.start()
	return d.legacy, err
}

// Libxc returns the headers of the libxc stream; valid once Next has returned
// a libxc record.
func (d *LibxlDecoder) Libxc() Header { return d.xc.rules.h }

// Offset returns how many bytes of the stream were read.
func (d *LibxlDecoder) Offset() int64 { return d.xc.in.off }

// Trailing reports bytes after END as ErrTrailing.
func (d *LibxlDecoder) Trailing() error { return d.xc.in.trailing() }

// AtCheckpoint reports whether the last record was a CHECKPOINT_END.
func (d *LibxlDecoder) AtCheckpoint() bool {
	return d.rules.remus && d.rules.layer == layerLibxc && d.xc.AtCheckpoint()
}

// Next returns the next record of either layer, valid until the following
// call. It returns io.EOF after libxl's END. libxl writes and expects no END
// in a checkpointed stream, so there io.EOF also follows libxc's END. A
// stream that stops short is io.ErrUnexpectedEOF. An error is final.
func (d *LibxlDecoder) Next() (Item, error) {
	if err := d.start(); err != nil {
		return Item{}, err
	}
	if d.rules.ended {
		return Item{}, io.EOF
	}
	it, err := d.next()
	if err != nil {
		d.err = err
	}
	return it, err
}

func (d *LibxlDecoder) start() error {
	if d.started || d.err != nil {
		return d.err
	}
	d.started = true
	d.xc.Form = d.Form
	d.rules.form = d.Form
	var b [libxlHeaderLen]byte
	off := d.xc.in.off
	if err := d.xc.in.full(b[:]); err != nil {
		d.err = located(err, off, PartLibxlHeader)
		return d.err
	}
	legacy, err := parseLibxlHeader(b[:])
	if err != nil {
		d.err = &FormatError{off, PartLibxlHeader, err}
		return d.err
	}
	d.legacy = legacy
	return nil
}

func (d *LibxlDecoder) next() (Item, error) {
	if d.rules.layer == layerLibxc {
		rec, err := d.xc.Next()
		if err != nil {
			return Item{}, err
		}
		d.rules.seenPV = d.xc.rules.h.Type == PV
		d.rules.libxcBoundary(rec.Type)
		return Item{Libxc: &rec}, nil
	}

	in := &d.xc.in
	off := in.off
	typ, n, err := in.recordHeader()
	if err != nil {
		done := d.rules.remus && d.rules.layer == layerLibxl
		if done && !in.partial && errors.Is(err, io.ErrUnexpectedEOF) {
			d.rules.ended = true
			return Item{}, io.EOF
		}
		return Item{}, located(err, off, PartRecordHeader)
	}
	t := LibxlType(typ)
	if n > MaxLibxlBody {
		return Item{}, &FormatError{off, t, wrong(ErrLength, "%d bytes", n)}
	}
	if !t.known() && !t.Optional() {
		return Item{}, &FormatError{off, t, ErrMandatory}
	}
	body, err := in.recordBody(n)
	if err != nil {
		if isFormat(err) {
			return Item{}, &FormatError{off, t, err}
		}
		return Item{}, located(err, off, t)
	}
	if err := d.rules.record(t, body); err != nil {
		return Item{}, &FormatError{off, t, err}
	}
	return Item{Libxl: &LibxlRecord{t, off, body}}, nil
}

// A LibxlEncoder writes a libxl stream with a libxc stream inside it. Like
// Encoder it refuses what its decoder would refuse.
type LibxlEncoder struct {
	// Form, if set before the first record, refuses records of another form.
	Form Form

	xc      *Encoder
	rules   libxlRules
	started bool
	err     error
}

// NewLibxlEncoder returns a LibxlEncoder that writes to w; h is the header of
// the libxc stream.
func NewLibxlEncoder(w io.Writer, h Header) *LibxlEncoder {
	return &LibxlEncoder{xc: NewEncoder(w, h)}
}

// Offset returns how many bytes were written.
func (e *LibxlEncoder) Offset() int64 { return e.xc.off }

// Encode writes a record of the libxl layer.
func (e *LibxlEncoder) Encode(rec LibxlRecord) error {
	if e.err != nil {
		return e.err
	}
	next := e.rules
	next.form = e.Form
	var b []byte
	if !e.started {
		b = LibxlHeader()
	}
	fail := func(err error) error { return &FormatError{e.xc.off, rec.Type, err} }
	if next.layer == layerLibxc {
		return fail(wrong(ErrOrder, "inside the libxc stream"))
	}
	if len(rec.Body) > MaxLibxlBody {
		return fail(wrong(ErrLength, "%d bytes", len(rec.Body)))
	}
	if err := next.record(rec.Type, rec.Body); err != nil {
		return fail(err)
	}
	n, err := e.xc.w.Write(appendRecord(b, uint32(rec.Type), rec.Body))
	e.xc.off += int64(n)
	e.rules, e.started, e.err = next, true, err
	return err
}

// EncodeLibxc writes a record of the libxc layer, after LIBXC_CONTEXT.
func (e *LibxlEncoder) EncodeLibxc(rec Record) error {
	if e.err != nil {
		return e.err
	}
	if e.rules.layer != layerLibxc {
		return &FormatError{e.xc.off, rec.Type, wrong(ErrOrder, "outside the libxc stream")}
	}
	e.xc.Form = e.Form
	if err := e.xc.Encode(rec); err != nil {
		return err
	}
	e.rules.seenPV = e.xc.rules.h.Type == PV
	e.rules.libxcBoundary(rec.Type)
	return nil
}

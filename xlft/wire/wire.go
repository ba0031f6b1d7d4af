// Package wire is the protocol between two xlft hosts: TLS 1.3 connections
// with pinned certificates, and length-framed messages on them.
//
// The one rule a caller must know: nothing that a peer sends is believed
// before it is whole. A frame's body grows with the bytes that arrive and
// never beyond [MaxBody]; an epoch counts only once its [EpochEnd] agrees with
// what came before it.
//
// PROTOCOL.md beside this file is the specification.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"

	"github.com/klauspost/compress/s2"
)

// Version range of the protocol that this package speaks.
const (
	VersionMin = 3 // 1 had other records of disks, 2 no generations of their data
	VersionMax = 3
)

// MaxBody is the longest body of a frame, in bytes.
const MaxBody = 4 << 20

// DataBody is the body size that a sender should use for Data frames, in bytes:
// large enough for a header to cost nothing, small enough for an ack or a
// cancel to get through between two of them.
const DataBody = 256 << 10

// headerLen is the length of a frame header: type u8, flags u8, reserved u16
// (zero), body length u32, epoch u64; little endian.
const headerLen = 16

// Flags of DATA frames.
const (
	// flagS2: the body is compressed as an S2 block, which starts with its decoded
	// length. Only sent if both sides have FeatureS2.
	flagS2 = 1
	// flagLines: the body, once it is decompressed, is coded by what changed (package
	// savestream/lines). Only sent if both sides have FeatureLines.
	flagLines = 2
)

// Names of features in HELLO.
const (
	FeatureS2     = "s2"
	FeatureLines  = "lines"
	FeatureVerify = "verify" // the backup answers VERIFY on the connection of a mirrored disk
	// The backup runs a domain from disks with the sectors that the primary says.
	FeatureSectors = "sectors"
)

// CodedBody is the longest body of a DATA frame that is coded by what changed, in bytes
// before compression. It stands for LinesBody bytes of the stream at most.
const (
	CodedBody = DataBody + 16<<10
	LinesBody = DataBody + 4<<10
)

// Type says what a frame carries.
type Type uint8

// The frame types, by the connection that carries them. The number is part of
// the protocol.
const (
	// Any connection.
	TypeHello  Type = 1 // Hello as JSON: the first frame each way
	TypeRefuse Type = 2 // Refusal as JSON: the last frame before a close

	// Control connection.
	TypeOffer     Type = 3 // Offer as JSON, primary to backup
	TypeAccept    Type = 4 // empty, backup to primary: send the domain
	TypeHeartbeat Type = 5 // empty, both ways
	TypeAck       Type = 6 // epoch: the backup holds all of it, verified
	TypeDestroy   Type = 7 // empty, primary to backup: destroy the replica
	TypeDestroyed Type = 8 // Refusal as JSON, backup to primary: replica gone, it will never run
	TypeHandOver  Type = 9 // epoch: the backup shall run on from it
	TypeRunning   Type = 10

	// Query connection.
	TypeCheck       Type = 11 // Offer as JSON: could you take this domain?
	TypeCheckResult Type = 12 // CheckResult as JSON
	TypeOwner       Type = 13 // OwnerQuery as JSON
	TypeOwnerResult Type = 14 // OwnerResult as JSON
	TypeList        Type = 15 // empty: which domains do you know of?
	TypeListResult  Type = 16 // ListResult as JSON

	// Data connection.
	TypeEpochBegin Type = 20 // epoch
	TypeData       Type = 21 // epoch, a piece of libxc's stream
	TypeEpochEnd   Type = 22 // epoch, EpochEnd: 16 bytes

	// Disk connection; after these two it carries package diskrepl's stream.
	TypeDisk      Type = 30 // DiskOpen as JSON, primary to backup
	TypeDiskReady Type = 31 // DiskReady as JSON
)

var typeNames = map[Type]string{
	TypeHello: "HELLO", TypeRefuse: "REFUSE", TypeOffer: "OFFER", TypeAccept: "ACCEPT",
	TypeHeartbeat: "HEARTBEAT", TypeAck: "ACK", TypeDestroy: "DESTROY", TypeDestroyed: "DESTROYED",
	TypeHandOver: "HANDOVER", TypeRunning: "RUNNING", TypeCheck: "CHECK",
	TypeCheckResult: "CHECK_RESULT", TypeOwner: "OWNER", TypeOwnerResult: "OWNER_RESULT",
	TypeList: "LIST", TypeListResult: "LIST_RESULT",
	TypeEpochBegin: "EPOCH_BEGIN", TypeData: "DATA", TypeEpochEnd: "EPOCH_END",
	TypeDisk: "DISK", TypeDiskReady: "DISK_READY",
}

func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// maxBody is the longest body of a frame of this type. Frames whose body has a
// known size get no more than that, so that a peer can't make us hold 4 MiB
// for a heartbeat.
func (t Type) maxBody() uint32 {
	switch t {
	case TypeAccept, TypeHeartbeat, TypeAck, TypeDestroy, TypeHandOver, TypeRunning, TypeList, TypeEpochBegin:
		return 0
	case TypeEpochEnd:
		return epochEndLen
	case TypeHello, TypeRefuse, TypeDestroyed, TypeOwner, TypeOwnerResult, TypeDisk, TypeDiskReady:
		return 16 << 10
	case TypeOffer, TypeCheck, TypeCheckResult, TypeListResult:
		return 1 << 20
	}
	return MaxBody
}

// Errors of a peer that does not keep to the protocol.
var (
	ErrTooLong    = errors.New("body longer than the protocol allows")
	ErrType       = errors.New("unknown frame type")
	ErrReserved   = errors.New("reserved bytes are not zero")
	ErrUnexpected = errors.New("frame not expected here")
	ErrPacked     = errors.New("compressed body is damaged")
)

// FrameError is a frame that could not be read. Offset counts bytes from the
// start of the connection to the frame's header.
type FrameError struct {
	Offset int64
	Type   Type // 0 if the header itself is bad
	Err    error
}

func (e *FrameError) Error() string {
	if e.Type == 0 {
		return fmt.Sprintf("wire: frame at offset %d: %v", e.Offset, e.Err)
	}
	return fmt.Sprintf("wire: %v frame at offset %d: %v", e.Type, e.Offset, e.Err)
}

func (e *FrameError) Unwrap() error { return e.Err }

// Frame is one message. Body is valid until the next Read on its Conn.
type Frame struct {
	Type  Type
	Epoch uint64
	Body  []byte
	Coded bool // DATA: by what changed
}

// Conn reads and writes frames. One goroutine may read while another writes.
type Conn struct {
	net.Conn
	in   io.Reader // what frames are read from: Conn, unless a Control reads
	off  int64     // bytes read so far
	rhdr [headerLen]byte
	body []byte
	whdr [headerLen]byte

	packed []byte // a compressed body as it came
	packer []byte // a compressed body as it goes
}

// NewConn frames c.
func NewConn(c net.Conn) *Conn { return &Conn{Conn: c, in: c} }

// ReadFrame returns the next frame. At a clean end of the connection, between two
// frames, the error is io.EOF; inside a frame it is io.ErrUnexpectedEOF.
func (c *Conn) ReadFrame() (Frame, error) {
	h := c.rhdr[:]
	if n, err := io.ReadFull(c.in, h); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return Frame{}, io.EOF
		}
		return Frame{}, &FrameError{c.off, 0, err}
	}
	t := Type(h[0])
	n := binary.LittleEndian.Uint32(h[4:])
	fail := func(err error) (Frame, error) { return Frame{}, &FrameError{c.off, t, err} }
	if _, ok := typeNames[t]; !ok {
		return fail(ErrType)
	}
	packed, coded := h[1]&flagS2 != 0, h[1]&flagLines != 0
	if h[1]&^(flagS2|flagLines) != 0 || h[1] != 0 && t != TypeData || h[2] != 0 || h[3] != 0 {
		return fail(ErrReserved)
	}
	limit := DataBody
	if coded {
		limit = CodedBody
	}
	if n > t.maxBody() {
		return fail(ErrTooLong)
	}
	var err error
	if packed {
		if c.packed, err = c.read(c.packed, int(n)); err == nil {
			err = c.unpack(limit)
		}
	} else {
		c.body, err = c.read(c.body, int(n))
	}
	if err != nil {
		return fail(err)
	}
	c.off += headerLen + int64(n)
	return Frame{t, binary.LittleEndian.Uint64(h[8:]), c.body, coded}, nil
}

// read reads n bytes into buf, which grows by what arrives and not by what a
// header claims: a claim costs a peer nothing, bytes do.
func (c *Conn) read(buf []byte, n int) ([]byte, error) {
	buf = buf[:0]
	for len(buf) < n {
		at := len(buf)
		step := min(n-at, max(64<<10, cap(buf)-at))
		if cap(buf)-at < step {
			grown := make([]byte, at, min(n, max(2*cap(buf), at+step)))
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:at+step]
		if _, err := io.ReadFull(c.in, buf[at:]); err != nil {
			return buf, short(err)
		}
	}
	return buf, nil
}

// unpack decompresses packed into body, at most limit bytes.
func (c *Conn) unpack(limit int) error {
	n, err := s2.DecodedLen(c.packed)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPacked, err)
	}
	if n > limit {
		return ErrTooLong
	}
	if cap(c.body) < n {
		c.body = make([]byte, 0, limit)
	}
	c.body, err = s2.Decode(c.body[:cap(c.body)], c.packed)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPacked, err)
	}
	return nil
}

// TakeBody hands the last frame's body to the caller. The next frame is read
// into next, which may be nil.
func (c *Conn) TakeBody(next []byte) { c.body = next[:0] }

// short turns an end inside a frame into io.ErrUnexpectedEOF.
func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteFrame sends a frame.
func (c *Conn) WriteFrame(t Type, epoch uint64, body []byte) error {
	if uint64(len(body)) > uint64(t.maxBody()) {
		return fmt.Errorf("wire: write %v: %w (%d bytes)", t, ErrTooLong, len(body))
	}
	return c.write(t, 0, epoch, body, t == TypeEpochBegin)
}

// WriteData sends a DATA frame of at most DataBody bytes, or of CodedBody bytes if they are
// coded by what changed. With pack they are compressed, if that is worth it. The frame may
// leave with the next one, at the latest with EPOCH_END. WriteData returns how many bytes
// the body has on the wire.
func (c *Conn) WriteData(epoch uint64, body []byte, coded, pack bool) (int, error) {
	limit, flags := DataBody, byte(0)
	if coded {
		limit, flags = CodedBody, flagLines
	}
	if len(body) > limit {
		return 0, fmt.Errorf("wire: write %v: %w (%d bytes)", TypeData, ErrTooLong, len(body))
	}
	if pack {
		if c.packer == nil {
			c.packer = make([]byte, s2.MaxEncodedLen(CodedBody))
		}
		if p := s2.Encode(c.packer, body); len(p) < len(body)-len(body)/8 {
			body, flags = p, flags|flagS2
		}
	}
	return len(body), c.write(TypeData, flags, epoch, body, true)
}

// write sends a frame. More: others follow, without which the peer can do nothing: they
// may leave together.
func (c *Conn) write(t Type, flags byte, epoch uint64, body []byte, more bool) error {
	c.whdr = [headerLen]byte{0: byte(t), 1: flags}
	binary.LittleEndian.PutUint32(c.whdr[4:], uint32(len(body)))
	binary.LittleEndian.PutUint64(c.whdr[8:], epoch)
	if sc, ok := c.Conn.(*tlsConn); ok {
		return sc.writeAll(more, c.whdr[:], body)
	}
	if len(body) == 0 {
		_, err := c.Write(c.whdr[:])
		return err
	}
	bufs := net.Buffers{c.whdr[:], body}
	_, err := bufs.WriteTo(c.Conn)
	return err
}

// WriteJSON sends a frame whose body is v as JSON.
func (c *Conn) WriteJSON(t Type, epoch uint64, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("wire: write %v: %w", t, err)
	}
	return c.WriteFrame(t, epoch, b)
}

// Expect reads the next frame, which must be of type t, and decodes its JSON
// body into v unless v is nil. A REFUSE or DESTROYED frame instead is returned
// as its *Refusal.
func (c *Conn) Expect(t Type, v any) error {
	f, err := c.ReadFrame()
	if err != nil {
		return err
	}
	if f.Type != t {
		if f.Type == TypeRefuse || f.Type == TypeDestroyed {
			return f.Refusal()
		}
		return &FrameError{c.off, f.Type, fmt.Errorf("%w: waiting for %v", ErrUnexpected, t)}
	}
	if v == nil {
		return nil
	}
	return f.JSON(v)
}

// JSON decodes the body into v.
func (f Frame) JSON(v any) error {
	if err := json.Unmarshal(f.Body, v); err != nil {
		return fmt.Errorf("wire: %v: %w", f.Type, err)
	}
	return nil
}

// Refusal decodes a REFUSE or DESTROYED frame. The error is the refusal itself,
// or says that it could not be read.
func (f Frame) Refusal() error {
	r := new(Refusal)
	if err := f.JSON(r); err != nil {
		return err
	}
	return r
}

const epochEndLen = 16

// EpochEnd closes an epoch: what the receiver must have seen since EPOCH_BEGIN.
type EpochEnd struct {
	Length uint64 // bytes in all Data bodies
	CRC    uint32 // CRC-32C (Castagnoli) of all Data bodies
}

// Add counts the next piece of the epoch's stream.
func (e *EpochEnd) Add(piece []byte) {
	e.Length += uint64(len(piece))
	e.CRC = crc32.Update(e.CRC, castagnoli, piece)
}

// castagnoli is the polynomial of CRC-32C, which processors compute.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append encodes e: length u64, crc u32, zero u32; little endian.
func (e EpochEnd) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, e.Length)
	b = binary.LittleEndian.AppendUint32(b, e.CRC)
	return binary.LittleEndian.AppendUint32(b, 0)
}

// EpochEnd decodes an EPOCH_END frame.
func (f Frame) EpochEnd() (EpochEnd, error) {
	if len(f.Body) != epochEndLen {
		return EpochEnd{}, fmt.Errorf("wire: %v: %d bytes, not %d", f.Type, len(f.Body), epochEndLen)
	}
	if binary.LittleEndian.Uint32(f.Body[12:]) != 0 {
		return EpochEnd{}, fmt.Errorf("wire: %v: %w", f.Type, ErrReserved)
	}
	return EpochEnd{binary.LittleEndian.Uint64(f.Body), binary.LittleEndian.Uint32(f.Body[8:])}, nil
}

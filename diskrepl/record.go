package diskrepl

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// The stream between a Link and a Replica is a sequence of records, and so are
// the files of an EpochStore. This is the definition of the format. All
// integers are little endian.
//
//	offset  size
//	0       1     type
//	1       1     flags
//	2       2     reserved, 0
//	4       4     n: length of the range in bytes, or of the body
//	8       8     offset of the range in bytes, or of APPLIED and COMMITTED an epoch; else 0
//	16      8     epoch that the record belongs to; 0 from the replica
//	24      n     body, of WRITE, SEAL, HASHES, FAILED and VERIFIED
type recordType uint8

const (
	recWrite  recordType = 1 // to the replica: the body was written at offset
	recZero   recordType = 2 // to the replica: the range reads as zeroes from here on
	recTrim   recordType = 3 // to the replica: the range is not needed any more
	recFlush  recordType = 4 // to the replica: later records must not reach the disk before earlier ones
	recSeal   recordType = 5 // to the replica: the epoch ends; the body is its sum
	recSynced recordType = 6 // to the replica: all chunks that differed have been sent
	recHashes recordType = 7 // to the link: the body is the hash of each chunk from offset on
	recFailed recordType = 8 // to the link: the replica failed; the body is the error's text

	// Of a Mirror only.
	recCompare   recordType = 11 // to the replica: send the hashes of all chunks
	recCommitted recordType = 12 // to the link: the epoch in the offset field, and all before it, are not held any more
	recVerify    recordType = 13 // to the replica: send the hash of the range as it is after all earlier records
	recVerified  recordType = 14 // to the link: the answer; the body is the hash, of zeroes if the range can't be read

	// Of a Shared only.
	recProbe   recordType = 9  // to the replica: send the hash of the range
	recApplied recordType = 10 // to the replica: the storage has the epoch in the offset field
)

var recordNames = map[recordType]string{recWrite: "WRITE", recZero: "ZERO", recTrim: "TRIM", recFlush: "FLUSH",
	recSeal: "SEAL", recSynced: "SYNCED", recHashes: "HASHES", recFailed: "FAILED", recCompare: "COMPARE", recProbe: "PROBE", recApplied: "APPLIED", recCommitted: "COMMITTED",
	recVerify: "VERIFY", recVerified: "VERIFIED"}

func (t recordType) String() string {
	if s, ok := recordNames[t]; ok {
		return s
	}
	return fmt.Sprintf("record type %d", uint8(t))
}

func (t recordType) hasBody() bool {
	return t == recWrite || t == recSeal || t == recHashes || t == recFailed || t == recVerified
}

// Flags of a record.
const (
	flagFUA  = 1 << 0 // force unit access: the write was durable when it was answered
	flagKeep = 1 << 1 // of ZERO: the space stays allocated
)

const (
	headerSize = 24
	maxBody    = 32 << 20 // bytes: nbd.MaxRequest
	sealSize   = 16

	// heldSize is how much memory a Replica needs for a record that it holds back,
	// beyond the body. Both sides count it: small writes are mostly that.
	heldSize = 64
)

// A record is the header of a record.
type record struct {
	typ   recordType
	flags uint8
	n     uint32
	off   uint64
	epoch uint64
}

// fits reports whether the range lies on a disk of so many bytes.
func (r record) fits(disk int64) bool {
	return r.off <= uint64(disk) && uint64(r.n) <= uint64(disk)-r.off
}

// append appends the encoded header to b.
func (r record) append(b []byte) []byte {
	b = append(b, byte(r.typ), r.flags, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, r.n)
	b = binary.LittleEndian.AppendUint64(b, r.off)
	return binary.LittleEndian.AppendUint64(b, r.epoch)
}

// A sum is the body of a SEAL: the number of records of its epoch, and their
// checksum, bodies included.
//
//	offset  size
//	0       8     number of records, without the SEAL
//	8       4     CRC-32C of the records
//	12      4     reserved, 0
type sum struct {
	records uint64
	crc     uint32 // CRC-32C
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *sum) add(records uint64, b []byte) {
	s.records += records
	s.crc = crc32.Update(s.crc, castagnoli, b)
}

func (s sum) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, s.records)
	b = binary.LittleEndian.AppendUint32(b, s.crc)
	return append(b, 0, 0, 0, 0)
}

func parseSum(b []byte) (sum, error) {
	if len(b) != sealSize {
		return sum{}, fmt.Errorf("a sum of %d bytes, want %d", len(b), sealSize)
	}
	if binary.LittleEndian.Uint32(b[12:]) != 0 {
		return sum{}, errors.New("reserved bits are set")
	}
	return sum{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])}, nil
}

// cached is how many bytes are summed and sent, or received, at once, so that
// they are still in the processor's cache.
const cached = 64 << 10

// A StreamError says where a stream violates the format.
type StreamError struct {
	Offset int64  // of the record in the stream
	What   string // name of the record's type
	Err    error
}

func (e *StreamError) Error() string {
	return fmt.Sprintf("diskrepl: %s at offset %d: %v", e.What, e.Offset, e.Err)
}

func (e *StreamError) Unwrap() error { return e.Err }

// A reader decodes records.
type reader struct {
	r   *bufio.Reader
	off int64
	hdr [headerSize]byte
	sum sum
}

// tlsRecord is how many bytes a TLS connection returns at once. A larger buffer
// would only copy longer bodies once more.
const tlsRecord = 16 << 10

func newReader(r io.Reader, buffer int) *reader { return &reader{r: bufio.NewReaderSize(r, buffer)} }

// ErrLost says that the connection broke or ended, or that a file ends too
// early.
var ErrLost = errors.New("connection lost")

// next returns the next record and its body, in memory that get returns.
func (d *reader) next(get func(int) []byte) (record, []byte, error) {
	fail := func(what string, err error) (record, []byte, error) {
		return record{}, nil, &StreamError{d.off, what, err}
	}
	lost := func(what string, err error) (record, []byte, error) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fail(what, fmt.Errorf("%w: %w", ErrLost, err))
	}
	if n, err := io.ReadFull(d.r, d.hdr[:]); err != nil {
		if n == 0 {
			return record{}, nil, fmt.Errorf("%w: %w", ErrLost, err)
		}
		return lost("header", err)
	}
	b := d.hdr[:]
	r := record{
		typ: recordType(b[0]), flags: b[1], n: binary.LittleEndian.Uint32(b[4:]),
		off: binary.LittleEndian.Uint64(b[8:]), epoch: binary.LittleEndian.Uint64(b[16:]),
	}
	if _, ok := recordNames[r.typ]; !ok {
		return fail(r.typ.String(), errors.New("not known"))
	}
	var flags uint8
	switch r.typ {
	case recWrite, recTrim:
		flags = flagFUA
	case recZero:
		flags = flagFUA | flagKeep
	}
	ranged := flags != 0 || r.typ == recHashes || r.typ == recProbe || r.typ == recVerify || r.typ == recVerified
	numbered := r.typ == recApplied || r.typ == recCommitted
	if b[2]|b[3] != 0 || r.flags&^flags != 0 || !ranged && !numbered && r.off != 0 || !ranged && !r.typ.hasBody() && r.n != 0 {
		return fail(r.typ.String(), errors.New("reserved bits are set"))
	}
	var body []byte
	if r.typ.hasBody() {
		if r.n > maxBody {
			return fail(r.typ.String(), fmt.Errorf("body of %d bytes, at most %d", r.n, maxBody))
		}
		body = get(int(r.n))
	}
	counts := r.typ != recSeal
	if counts {
		d.sum.add(1, b)
	}
	for part := range slices.Chunk(body, cached) {
		if _, err := io.ReadFull(d.r, part); err != nil {
			return lost(r.typ.String(), err)
		}
		if counts {
			d.sum.add(0, part)
		}
	}
	d.off += headerSize + int64(len(body))
	return r, body, nil
}

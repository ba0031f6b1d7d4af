package savestream

import (
	"encoding/binary"
	"io"
)

// A Mark is a position in a libxc stream up to which the stream is a complete
// state.
type Mark uint8

const (
	MarkNone       Mark = iota
	MarkCheckpoint      // a CHECKPOINT record ended here
	MarkEnd             // the END record ended here
)

func (m Mark) String() string { return [...]string{"none", "checkpoint", "end"}[m] }

// Stats are a Scanner's counts for an epoch.
type Stats struct {
	Records   uint64 // the boundary record too
	PFNs      uint64 // entries of pfn tables
	Pages     uint64 // entries with content
	PageBytes uint64 // Pages * PageSize
	Bytes     uint64 // bytes of the stream, headers and padding too
}

func (s *Stats) add(o Stats) {
	s.Records += o.Records
	s.PFNs += o.PFNs
	s.Pages += o.Pages
	s.PageBytes += o.PageBytes
	s.Bytes += o.Bytes
}

// A Scanner follows a libxc stream as it passes by, in pieces of any size. It
// checks all that a Decoder checks, but copies no page and allocates nothing:
// it does not read page contents. The zero value is ready for use.
type Scanner struct {
	// Form, if set before the first Scan, refuses streams of another form.
	Form Form

	rules rules
	state scanState
	err   error
	off   int64 // of the next byte to come

	// A field that is cut by the end of a piece is gathered here.
	buf  [imageHeaderLen]byte
	have int

	typ     RecordType
	n       uint32 // body length
	start   int64  // offset of the record's header
	left    int64  // bytes of the present state still to come
	entry   int    // index into the pfn table
	pages   uint32 // with data, so far
	room    uint32 // for pages behind the table
	atMark  bool
	started bool

	epoch Stats
	total Stats
}

type scanState uint8

const (
	scanImageHeader scanState = iota
	scanDomainHeader
	scanRecordHeader
	scanHead  // fixed fields at the start of a body
	scanTable // PAGE_DATA's pfns
	scanBody  // passed over
	scanPadding
)

// Scan looks at the next piece of the stream. It returns how many bytes of p
// were consumed: all of them, or fewer if a boundary (the end of a CHECKPOINT
// or END record) lies inside p. The boundary then is the returned mark, and the
// rest of p is for the next call. An error is final.
func (s *Scanner) Scan(p []byte) (n int, mark Mark, err error) {
	if s.err != nil {
		return 0, MarkNone, s.err
	}
	if len(p) == 0 {
		return 0, MarkNone, nil
	}
	if !s.started {
		s.started = true
		s.rules.form = s.Form
	}
	if s.rules.ended {
		return 0, MarkNone, s.fail(s.off, PartEnd, ErrTrailing)
	}
	if s.atMark {
		s.atMark = false
		s.total.add(s.epoch)
		s.epoch = Stats{}
	}

	for n < len(p) && mark == MarkNone {
		var m int
		m, mark, err = s.step(p[n:])
		n += m
		s.off += int64(m)
		s.epoch.Bytes += uint64(m)
		if err != nil {
			return n, MarkNone, err
		}
	}
	s.atMark = mark != MarkNone
	return n, mark, nil
}

// Header returns the stream's header, once it has been scanned.
func (s *Scanner) Header() (h Header, ok bool) {
	return s.rules.h, s.state > scanDomainHeader
}

// Offset returns how many bytes were scanned.
func (s *Scanner) Offset() int64 { return s.off }

// Checkpoints returns how many CHECKPOINT records were passed.
func (s *Scanner) Checkpoints() uint64 { return s.rules.checkpoints }

// AtBoundary reports whether the last byte scanned ended a CHECKPOINT or END.
func (s *Scanner) AtBoundary() bool { return s.atMark }

// Stats counts since the last boundary. Right after Scan has returned a mark,
// these are the counts of the epoch that ends there.
func (s *Scanner) Stats() Stats { return s.epoch }

// Total counts since the start of the stream.
func (s *Scanner) Total() Stats {
	t := s.total
	t.add(s.epoch)
	return t
}

// Close returns nil if the stream may stop here, after END, and an error that
// is io.ErrUnexpectedEOF otherwise. For a stream that libxc stopped on purpose
// after a CHECKPOINT use AtBoundary instead.
func (s *Scanner) Close() error {
	switch {
	case s.err != nil:
		return s.err
	case s.rules.ended:
		return nil
	}
	return &FormatError{s.off, PartEnd, io.ErrUnexpectedEOF}
}

// field returns the next size bytes of the stream, or nil if p ends before
// they do, and how many bytes of p it took.
func (s *Scanner) field(p []byte, size int) (b []byte, n int) {
	if s.have == 0 && len(p) >= size {
		return p[:size], size
	}
	n = copy(s.buf[s.have:size], p)
	s.have += n
	if s.have < size {
		return nil, n
	}
	s.have = 0
	return s.buf[:size], n
}

func (s *Scanner) step(p []byte) (n int, mark Mark, err error) {
	var b []byte
	switch s.state {
	case scanImageHeader:
		if b, n = s.field(p, imageHeaderLen); b == nil {
			return n, MarkNone, nil
		}
		if s.rules.h.Version, err = parseImageHeader(b); err != nil {
			return n, MarkNone, s.fail(0, PartImageHeader, err)
		}
		s.state = scanDomainHeader

	case scanDomainHeader:
		if b, n = s.field(p, domainHeaderLen); b == nil {
			return n, MarkNone, nil
		}
		if err := s.rules.h.parseDomainHeader(b); err != nil {
			return n, MarkNone, s.fail(imageHeaderLen, PartDomainHeader, err)
		}
		s.state = scanRecordHeader

	case scanRecordHeader:
		if s.have == 0 {
			s.start = s.off
		}
		if b, n = s.field(p, recordHeaderLen); b == nil {
			return n, MarkNone, nil
		}
		s.typ = RecordType(binary.LittleEndian.Uint32(b))
		s.n = binary.LittleEndian.Uint32(b[4:])
		if err := s.rules.record(s.typ, s.n); err != nil {
			return n, MarkNone, s.fail(s.start, s.typ, err)
		}
		s.left = int64(s.n)
		switch {
		case headLen(s.typ) > 0:
			s.state = scanHead
		case s.n > 0:
			s.state = scanBody
		default:
			return n, s.finish(), nil
		}

	case scanHead:
		size := headLen(s.typ)
		if b, n = s.field(p, size); b == nil {
			return n, MarkNone, nil
		}
		if err := s.rules.head(s.typ, s.n, b); err != nil {
			return n, MarkNone, s.fail(s.start, s.typ, err)
		}
		s.left -= int64(size)
		if s.typ == PageDataType {
			s.room, _ = pageDataRoom(s.n, b)
			s.left = int64(binary.LittleEndian.Uint32(b)) * pageEntryLen
			s.entry, s.pages = 0, 0
			s.state = scanTable
			break
		}
		return n, s.afterBody(), nil

	case scanTable:
		n, err = s.table(p)
		return n, MarkNone, err

	case scanBody:
		n = int(min(s.left, int64(len(p))))
		s.left -= int64(n)
		return n, s.afterBody(), nil

	case scanPadding:
		n = int(min(s.left, int64(len(p))))
		for _, c := range p[:n] {
			if c != 0 {
				return n, MarkNone, s.fail(s.start, s.typ, ErrPadding)
			}
		}
		if s.left -= int64(n); s.left == 0 {
			return n, s.finish(), nil
		}
	}
	return n, MarkNone, nil
}

// table checks as much of a pfn table as p holds.
func (s *Scanner) table(p []byte) (n int, err error) {
	if s.have > 0 || len(p) < pageEntryLen {
		b, n := s.field(p, pageEntryLen)
		if b == nil {
			return n, nil
		}
		return n, s.entries(b)
	}
	n = int(min(s.left, int64(len(p)))) &^ (pageEntryLen - 1)
	return n, s.entries(p[:n])
}

// entries checks whole entries of a pfn table, all of them or up to its end.
func (s *Scanner) entries(b []byte) error {
	s.left -= int64(len(b))
	for ; len(b) >= pageEntryLen; b = b[pageEntryLen:] {
		e := binary.LittleEndian.Uint64(b)
		t := e >> entryTypeShift
		if e&entryReserved != 0 || knownTypeMask>>t&1 == 0 {
			return s.fail(s.start, s.typ, checkEntry(s.entry, e))
		}
		s.pages += hasDataMask >> t & 1
		s.entry++
	}
	if s.left > 0 {
		return nil
	}
	if s.pages != s.room {
		return s.fail(s.start, s.typ, wrong(ErrLength, "room for %d pages, types want %d", s.room, s.pages))
	}
	s.epoch.PFNs += uint64(s.entry)
	s.epoch.Pages += uint64(s.pages)
	s.epoch.PageBytes += uint64(s.pages) * PageSize
	s.left = int64(s.pages) * PageSize
	s.state = scanBody
	if s.left == 0 {
		s.finish()
	}
	return nil
}

// afterBody moves on once the body has passed.
func (s *Scanner) afterBody() Mark {
	s.state = scanBody
	if s.left > 0 {
		return MarkNone
	}
	if s.left = align8(int64(s.n)) - int64(s.n); s.left > 0 {
		s.state = scanPadding
		return MarkNone
	}
	return s.finish()
}

// finish ends a record.
func (s *Scanner) finish() Mark {
	s.state = scanRecordHeader
	s.epoch.Records++
	switch s.typ {
	case Checkpoint:
		return MarkCheckpoint
	case End:
		return MarkEnd
	}
	return MarkNone
}

func (s *Scanner) fail(off int64, what interface{ String() string }, err error) error {
	s.err = &FormatError{off, what, err}
	return s.err
}

package lines

import (
	"encoding/binary"
	"errors"

	"xlft/savestream"
)

// A walker follows a libxc stream and knows where the contents of pages are. It checks only
// what it needs for that.
type walker struct {
	head []byte   // what there is of the headers, or of a table
	need int      // how long head is to be
	body int      // literal bytes until the next record
	pfns []uint64 // whose contents come next, from at on
	at   int
	in   state

	checkpoints int
}

type state uint8

const (
	inHeaders state = iota
	inRecord
	inCount
	inTable
	inBody
	inPages
)

// Lengths in bytes, see savestream.
const (
	headersLen    = 24 + 16
	recordHeadLen = 8
	countLen      = 8
)

var errStream = errors.New("lines: no libxc stream")

func newWalker() walker { return walker{in: inHeaders, need: headersLen} }

// page returns the number of the page whose content comes next.
func (w *walker) page() (pfn uint64, ok bool) {
	if w.in != inPages {
		return 0, false
	}
	return w.pfns[w.at], true
}

// pagePassed goes behind that page.
func (w *walker) pagePassed() {
	if w.at++; w.at == len(w.pfns) {
		w.record()
	}
}

func (w *walker) record() { w.in, w.head, w.need = inRecord, w.head[:0], recordHeadLen }

// literal follows the bytes of b that are not the content of a page, and returns how many
// they are.
func (w *walker) literal(b []byte) (int, error) {
	all := len(b)
	for len(b) > 0 && w.in != inPages {
		if w.in == inBody {
			n := min(w.body, len(b))
			w.body -= n
			b = b[n:]
			if w.body == 0 {
				w.record()
			}
			continue
		}
		n := min(w.need-len(w.head), len(b))
		w.head = append(w.head, b[:n]...)
		b = b[n:]
		if len(w.head) == w.need {
			if err := w.next(); err != nil {
				return 0, err
			}
		}
	}
	return all - len(b), nil
}

// next goes on from a part that is whole.
func (w *walker) next() error {
	le := binary.LittleEndian
	switch w.in {
	case inHeaders:
		w.record()
	case inRecord:
		typ, n := savestream.RecordType(le.Uint32(w.head)), le.Uint32(w.head[4:])
		switch {
		case n > savestream.MaxBody:
			return errStream
		case typ == savestream.PageDataType:
			w.in, w.head, w.need = inCount, w.head[:0], countLen
		case n == 0:
			if typ == savestream.Checkpoint {
				w.checkpoints++
			}
			w.record()
		default:
			w.in, w.body = inBody, int(n+7)&^7
		}
	case inCount:
		n := le.Uint32(w.head)
		if n == 0 || n > savestream.MaxBody/8 {
			return errStream
		}
		w.in, w.head, w.need = inTable, w.head[:0], int(n)*8
	case inTable:
		w.pfns, w.at = w.pfns[:0], 0
		for b := w.head; len(b) > 0; b = b[8:] {
			if e := savestream.ParsePageEntry(le.Uint64(b)); e.Type.HasData() {
				w.pfns = append(w.pfns, e.PFN)
			}
		}
		if w.in = inPages; len(w.pfns) == 0 {
			w.record()
		}
	}
	return nil
}

package diskrepl

import (
	"fmt"
	"hash/crc32"
	"io"
)

// A SpillFile holds writes for which a Replica has no memory. Its contents are
// not needed after the process ends, so the file needs no name.
type SpillFile interface {
	io.ReaderAt
	io.WriterAt
}

// A spill is a ring buffer in a file. Epochs are written and freed in order.
type spill struct {
	f    SpillFile
	size int64

	head, tail int64 // bytes freed and written since the start; guarded by the Replica's lock
}

// spillSlack is how much larger than its share of the limit the file is: a
// record that does not fit into memory goes to the file as a whole.
const spillSlack = maxBody

// SpillSize returns the size in bytes of the file for [Replica.SpillTo] with n
// bytes.
func SpillSize(n int64) int64 { return n + spillSlack }

// put writes a body to its place, counted like tail.
func (s *spill) put(at int64, b []byte) error {
	return s.pieces(at, b, s.f.WriteAt)
}

// get reads a part of a body from its place.
func (s *spill) get(at int64, b []byte) error {
	return s.pieces(at, b, s.f.ReadAt)
}

// load fills b with the body of a record, and verifies it: the file goes through
// the page cache, which forgets what it could not write, and storage may return
// something else than it was given.
func (s *spill) load(l logged, b []byte) error {
	if err := s.get(l.at, b); err != nil {
		return err
	}
	if crc := crc32.Checksum(b, castagnoli); crc != l.crc {
		return fmt.Errorf("diskrepl: journal file: %d bytes at %d were written with CRC-32C %08x and come back with %08x: its storage is damaged", len(b), l.at%s.size, l.crc, crc)
	}
	return nil
}

// verify reads and verifies all bodies of a log that are in the file.
func (s *spill) verify(log *epochLog) error {
	var scratch []byte
	for _, l := range log.recs {
		if !l.spilled() {
			continue
		}
		if cap(scratch) < int(l.n) {
			scratch = make([]byte, l.n)
		}
		if err := s.load(l, scratch[:l.n]); err != nil {
			return err
		}
	}
	return nil
}

// pieces calls do for each contiguous part of a body.
func (s *spill) pieces(at int64, b []byte, do func([]byte, int64) (int, error)) error {
	for len(b) > 0 {
		off := at % s.size
		n := min(int64(len(b)), s.size-off)
		if _, err := do(b[:n], off); err != nil {
			return fmt.Errorf("diskrepl: journal file: %w", err)
		}
		at, b = at+n, b[n:]
	}
	return nil
}

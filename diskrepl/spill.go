package diskrepl

import (
	"fmt"
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

// get reads a body from its place.
func (s *spill) get(at int64, b []byte) error {
	return s.pieces(at, b, s.f.ReadAt)
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

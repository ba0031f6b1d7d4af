package diskrepl

import (
	"fmt"
	"io"
)

// A SpillFile holds what a journal has no memory for. It needs no name: what
// it has dies with the process.
type SpillFile interface {
	io.ReaderAt
	io.WriterAt
}

// A spill is a ring in a file: epochs are written and freed in order.
type spill struct {
	f    SpillFile
	size int64

	head, tail int64 // bytes freed and written, ever; guarded by the Replica's lock
}

// spillSlack is what the file has beyond its part of the limit: a record goes
// to it as a whole when it does not fit into memory as a whole.
const spillSlack = maxBody

// SpillSize is how large the file for a spill of n bytes must be.
func SpillSize(n int64) int64 { return n + spillSlack }

// put and get move a body to and from its place, counted like tail.
func (s *spill) put(at int64, b []byte) error {
	return s.pieces(at, b, s.f.WriteAt)
}

func (s *spill) get(at int64, b []byte) error {
	return s.pieces(at, b, s.f.ReadAt)
}

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

package diskrepl

import (
	"bytes"
	"fmt"
)

// A readBack verifies what is written to a disk that failed before, by a first copy
// or from a journal: it is flushed, and read again from the storage. A flush that succeeds
// after one that failed proves nothing: where a write-back failed, ext4 (Linux
// 6.18) may keep the extent as unwritten as long as its pages are in the page
// cache, and the storage then returns zeroes for what was written and flushed.
type readBack struct {
	r     *Replica
	log   *epochLog // has the memory of the data
	wrote extents
	bytes int64
}

// readBackBatch is how many bytes are written before they are verified.
const readBackBatch = 16 << 20

// add takes note of a record that was applied.
func (v *readBack) add(rec record, body []byte) error {
	v.wrote.do(rec, body, 0)
	if v.bytes += headerSize + int64(len(body)); v.bytes < readBackBatch {
		return nil
	}
	return v.verify()
}

// verify returns an error if the storage does not have what was written since
// the last call. What it does not have is written once more before.
func (v *readBack) verify() error {
	for again := false; ; again = true {
		if err := v.r.dev.Flush(); err != nil {
			return &diskError{fmt.Errorf("diskrepl: verify what was written: %w", err)}
		}
		bad, err := v.differing()
		if err != nil {
			return &diskError{v.r.dev.keep(fmt.Errorf("diskrepl: verify what was written: %w", err))}
		}
		if len(bad) == 0 {
			break
		}
		if again {
			err := fmt.Errorf("diskrepl: verify what was written: %d bytes at %d were written and flushed, and the storage returns others", bad[0].end-bad[0].off, bad[0].off)
			return &diskError{v.r.dev.keep(err)}
		}
		for _, e := range bad {
			if err := v.r.dev.forget(e.off, e.end-e.off); err != nil {
				return &diskError{err}
			}
		}
		if err := bad.writeOut(v.r.dev, nil); err != nil {
			return &diskError{fmt.Errorf("diskrepl: write a part again: %w", err)}
		}
	}
	v.r.slab.release(v.log)
	v.wrote, v.bytes = nil, 0
	return nil
}

// differing returns what the storage does not have.
func (v *readBack) differing() (bad extents, err error) {
	b := make([]byte, ChunkSize)
	for _, e := range v.wrote {
		if e.typ == recTrim {
			continue // it may read as anything
		}
		for off := e.off; off < e.end; off += ChunkSize {
			part := e.cut(off, min(off+ChunkSize, e.end))
			got := b[:part.end-part.off]
			if err := v.r.dev.readStable(got, off); err != nil {
				return nil, err
			}
			want := part.mem
			if e.typ == recZero {
				want = zeroes[:len(got)]
			}
			if !bytes.Equal(got, want) {
				bad = append(bad, part)
			}
		}
	}
	return bad, nil
}

var zeroes [ChunkSize]byte

package diskrepl

import "fmt"

// A heldEpoch is an epoch whose writes a Shared holds back: its records in a
// file, and where in the file the newest data of each range is.
type heldEpoch struct {
	epoch uint64
	f     EpochFile
	size  int64 // bytes of whole records in f
	x     extents
	refs  int // readers, and 1 while the epoch is held; guarded by the Shared's lock
}

// recover reads what an earlier process left in the file. size is that of the
// disk.
func (e *heldEpoch) recover(size int64) error {
	var body []byte // its contents are not needed, only its offset
	get := func(n int) []byte {
		if cap(body) < n {
			body = make([]byte, n)
		}
		return body[:n]
	}
	return readEpochFile(e.f, e.epoch, size, get, func(d *reader, rec record, _ []byte) (bool, error) {
		e.add(rec, d.off)
		return true, nil
	})
}

// add adds a record that was appended to the file. The file then has size
// bytes.
func (e *heldEpoch) add(rec record, size int64) {
	e.x.do(rec, nil, e.size+headerSize)
	e.size = size
}

// load fills b from the file.
func (e *heldEpoch) load(b []byte, at int64) error {
	if n, err := e.f.ReadAt(b, at); n < len(b) {
		return fmt.Errorf("diskrepl: read back what is held: %w", err)
	}
	return nil
}

// unref drops a reference. It is called with the Shared's lock held.
func (e *heldEpoch) unref() {
	if e.refs--; e.refs == 0 {
		e.f.Remove() // if that fails, a later process writes the epoch once more
	}
}

// A piece is a part of a range that is read.
type piece struct {
	extent
	e *heldEpoch // that has the data; nil: the storage has it
}

// pieces appends to list where the data of a range is: in the newest of the
// held epochs that has it, or else on the storage. It takes a reference on an
// epoch for each piece. It is called with the Shared's lock held.
func pieces(list []piece, epochs []*heldEpoch, off, end int64) []piece {
	if off >= end {
		return list
	}
	if len(epochs) == 0 {
		return append(list, piece{extent{off: off, end: end}, nil})
	}
	older, newest := epochs[:len(epochs)-1], epochs[len(epochs)-1]
	from, to := newest.x.overlap(off, end)
	for _, x := range newest.x[from:to] {
		x = x.cut(max(x.off, off), min(x.end, end))
		list = append(pieces(list, older, off, x.off), piece{x, newest})
		newest.refs++
		off = x.end
	}
	return pieces(list, older, off, end)
}

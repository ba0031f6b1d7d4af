package diskrepl

import (
	"slices"
	"sync"
)

// An extent is a range of a disk and what was last done to it.
type extent struct {
	off, end int64
	typ      recordType // recWrite, recZero or recTrim
	keep     bool       // of a recZero
	mem      []byte     // the data of a recWrite
	at       int64      // where the data is in a file, if mem is nil
}

// cut returns the part of e between two offsets that lie in it.
func (e extent) cut(off, end int64) extent {
	if e.mem != nil {
		e.mem = e.mem[off-e.off : end-e.off]
	}
	e.at += off - e.off
	e.off, e.end = off, end
	return e
}

// extents are disjoint and in the order of their offsets.
type extents []extent

// overlap returns which extents overlap a range: x[from:to].
func (x extents) overlap(off, end int64) (from, to int) {
	from, _ = slices.BinarySearchFunc(x, off, func(e extent, off int64) int {
		if e.end <= off {
			return -1
		}
		return 1
	})
	for to = from; to < len(x) && x[to].off < end; to++ {
	}
	return from, to
}

// put adds an extent on top of what is there.
func (x *extents) put(e extent) {
	if e.off == e.end {
		return
	}
	from, to := x.overlap(e.off, e.end)
	var with [3]extent
	in := with[:0]
	if from < to {
		if f := (*x)[from]; f.off < e.off {
			in = append(in, f.cut(f.off, e.off))
		}
	}
	in = append(in, e)
	if from < to {
		if l := (*x)[to-1]; l.end > e.end {
			in = append(in, l.cut(e.end, l.end))
		}
	}
	*x = slices.Replace(*x, from, to, in...)
}

// do adds the effect of a record, if it has one. The data is in mem, or in a
// file at offset at.
func (x *extents) do(rec record, mem []byte, at int64) {
	switch rec.typ {
	case recWrite, recZero, recTrim:
		off := int64(rec.off)
		x.put(extent{off: off, end: off + int64(rec.n), typ: rec.typ, keep: rec.flags&flagKeep != 0, mem: mem, at: at})
	}
}

const (
	writersOut = 16      // concurrent writes of writeOut
	writeRun   = 1 << 20 // bytes of extents that are joined into one write, at most
)

// runs are buffers of writeRun bytes.
var runs = sync.Pool{New: func() any {
	b := make([]byte, writeRun)
	return &b
}}

// writeOut applies the extents to a disk and flushes it. load fills b with data
// from the file.
func (x extents) writeOut(dev Device, load func(b []byte, at int64) error) error {
	var (
		mu    sync.Mutex
		next  int
		first error
		wg    sync.WaitGroup
	)
	// take returns the next extents that one write can apply.
	take := func() extents {
		mu.Lock()
		defer mu.Unlock()
		if first != nil || next == len(x) {
			return nil
		}
		from := next
		for next++; next < len(x); next++ {
			p, e := x[next-1], x[next]
			if p.typ != recWrite || e.typ != recWrite || p.end != e.off || e.end-x[from].off > writeRun {
				break
			}
		}
		return x[from:next]
	}
	for range min(writersOut, len(x)) {
		wg.Go(func() {
			buf := runs.Get().(*[]byte)
			defer runs.Put(buf)
			for {
				run := take()
				if run == nil {
					return
				}
				if err := run.write(dev, load, *buf); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if first != nil {
		return first
	}
	return dev.Flush()
}

// write applies a run of extents: either one, or adjacent data. buf has
// writeRun bytes.
func (x extents) write(dev Device, load func(b []byte, at int64) error, buf []byte) error {
	e, n := x[0], x[len(x)-1].end-x[0].off
	switch e.typ {
	case recZero:
		return dev.Zero(e.off, n, e.keep, false)
	case recTrim:
		return dev.Trim(e.off, n, false)
	}
	if len(x) == 1 && e.mem != nil {
		return dev.WriteAt(e.mem, e.off, false)
	}
	if n > writeRun { // one long write
		buf = make([]byte, n)
	}
	b := buf[:n]
	for _, p := range x {
		part := b[p.off-e.off : p.end-e.off]
		if p.mem != nil {
			copy(part, p.mem)
		} else if err := load(part, p.at); err != nil {
			return err
		}
	}
	return dev.WriteAt(b, e.off, false)
}

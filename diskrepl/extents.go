package diskrepl

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// An extent is a range of a disk and what was last done to it.
type extent struct {
	off, end int64
	typ      recordType // recWrite, recZero or recTrim
	keep     bool       // of a recZero
	fua      bool       // the write is on stable storage when it is done
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

// extent returns the range of a record that changes one. The data is in mem, or in
// a file at offset at.
func (r record) extent(mem []byte, at int64) extent {
	off := int64(r.off)
	return extent{off: off, end: off + int64(r.n), typ: r.typ, keep: r.flags&flagKeep != 0, mem: mem, at: at}
}

// do adds the effect of a record, if it has one.
func (x *extents) do(rec record, mem []byte, at int64) {
	switch rec.typ {
	case recWrite, recZero, recTrim:
		x.put(rec.extent(mem, at))
	}
}

const (
	writersOut = 16                    // concurrent writes of writeAll
	slowWrite  = 40 * time.Microsecond // a write that takes longer waits for a disk
	writeRun   = 1 << 20               // bytes of extents that are joined into one write, at most
)

// runs are buffers of writeRun bytes.
var runs = sync.Pool{New: func() any {
	b := make([]byte, writeRun)
	return &b
}}

// writeOut applies the extents to a disk and flushes it. load fills b with data
// from the file.
func (x extents) writeOut(dev Device, load func(b []byte, at int64) error) error {
	h := newHands()
	defer h.end()
	if err := x.writeAll(dev, load, h); err != nil {
		return err
	}
	return dev.Flush()
}

// hands are goroutines that write side by side. They last for many runs: a barrier may
// come after each few writes.
type hands struct {
	jobs chan func()
	n    int
	all  sync.WaitGroup
}

func newHands() *hands { return &hands{jobs: make(chan func())} }

// help has n goroutines do work, and returns what waits for them.
func (h *hands) help(n int, work func()) (wait func()) {
	for ; h.n < n; h.n++ {
		h.all.Go(func() {
			for f := range h.jobs {
				f()
			}
		})
	}
	var wg sync.WaitGroup
	wg.Add(n)
	for range n {
		h.jobs <- func() {
			defer wg.Done()
			work()
		}
	}
	return wg.Wait
}

func (h *hands) end() {
	close(h.jobs)
	h.all.Wait()
}

// writeAll applies the extents to a disk, in any order and many at once. After an
// error it begins no other write.
func (x extents) writeAll(dev Device, load func(b []byte, at int64) error, h *hands) error {
	var (
		mu    sync.Mutex
		left  = x
		first error
	)
	// take returns the next extents that one write can apply.
	take := func() extents {
		mu.Lock()
		defer mu.Unlock()
		if first != nil {
			return nil
		}
		n := left.joined()
		run := left[:n]
		left = left[n:]
		return run
	}
	one := func(run extents) {
		if err := run.write(dev, load); err != nil {
			mu.Lock()
			if first == nil {
				first = fmt.Errorf("%v at %d: %w", run[0].typ, run[0].off, err)
			}
			mu.Unlock()
		}
	}
	var wait func()
	for run := take(); len(run) > 0; run = take() {
		begun := time.Now()
		one(run)
		// A write into the page cache is done sooner than another goroutine begins.
		if wait == nil && time.Since(begun) > slowWrite {
			wait = h.help(min(writersOut, len(x))-1, func() {
				for run := take(); len(run) > 0; run = take() {
					one(run)
				}
			})
		}
	}
	if wait != nil {
		wait()
	}
	return first
}

// joined returns how many of the first extents one write can apply.
func (x extents) joined() int {
	if len(x) == 0 {
		return 0
	}
	n := 1
	for ; n < len(x); n++ {
		p, e := x[n-1], x[n]
		if p.typ != recWrite || e.typ != recWrite || p.end != e.off || e.end-x[0].off > writeRun {
			break
		}
	}
	return n
}

// fua reports whether the write of a run is one with FUA.
func (x extents) fua() bool {
	return slices.ContainsFunc(x, func(e extent) bool { return e.fua })
}

// write applies a run of extents: either one, or adjacent data.
func (x extents) write(dev Device, load func(b []byte, at int64) error) error {
	e, n := x[0], x[len(x)-1].end-x[0].off
	fua := x.fua()
	switch e.typ {
	case recZero:
		return dev.Zero(e.off, n, e.keep, fua)
	case recTrim:
		return dev.Trim(e.off, n, fua)
	}
	if len(x) == 1 && e.mem != nil {
		return dev.WriteAt(e.mem, e.off, fua)
	}
	var b []byte
	if n <= writeRun {
		buf := runs.Get().(*[]byte)
		defer runs.Put(buf)
		b = (*buf)[:n]
	} else { // one long write
		b = make([]byte, n)
	}
	for _, p := range x {
		part := b[p.off-e.off : p.end-e.off]
		if p.mem != nil {
			copy(part, p.mem)
		} else if err := load(part, p.at); err != nil {
			return err
		}
	}
	return dev.WriteAt(b, e.off, fua)
}

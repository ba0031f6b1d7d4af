package backup

import (
	"fmt"
	"math"
	"slices"
	"sync"
)

// A timeline is what one domain did to its disk, from when it began to run on a
// host until it ended there. Times are counted, not measured.
type timeline struct {
	mu      sync.Mutex
	clock   int
	base    []uint64 // the disk when it began
	bad     []bool   // sectors that could not be read then
	ops     [sectors][]*guestOp
	flushes []*guestOp // one at a time
}

// A guestOp is a write or a flush of the domain.
type guestOp struct {
	start, end int // end is math.MaxInt until it was answered without an error
	value      uint64
	fua        bool
}

func (t *timeline) now() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	return t.clock
}

// begin enters a write of n sectors, and end that it was answered.
func (t *timeline) begin(at, n int, value uint64, fua bool) *guestOp {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	op := &guestOp{start: t.clock, end: math.MaxInt, value: value, fua: fua}
	for s := at; s < at+n; s++ {
		t.ops[s] = append(t.ops[s], op)
	}
	return op
}

func (t *timeline) beginFlush() *guestOp {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	op := &guestOp{start: t.clock, end: math.MaxInt}
	t.flushes = append(t.flushes, op)
	return op
}

func (t *timeline) end(op *guestOp, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	if err == nil {
		op.end = t.clock
	}
}

// A cut is when an epoch ended: somewhere between two times.
type cut struct{ from, to int }

// fits returns how an image differs from a disk that has all writes that were
// answered by the time lo, none that began after hi, and of those between any
// part. With minFUA it has the writes with FUA that were answered by then. It is
// called with mu held.
func (t *timeline) fits(values []uint64, unread []bool, lo, hi, minFUA int, mayBeUnread bool) error {
	for s := range sectors {
		ops := t.ops[s]
		first, last := -1, -1
		for i, op := range ops {
			if op.end <= lo || op.fua && op.end <= minFUA {
				first = i
			}
			if op.start < hi || op.end <= lo {
				last = i
			}
		}
		last = max(first, last)
		if unread[s] {
			if mayBeUnread && last > first || first < 0 && t.bad[s] {
				continue
			}
			return fmt.Errorf("sector %d can't be read", s)
		}
		ok := first < 0 && (values[s] == t.base[s] || t.bad[s])
		for i := max(first, 0); i <= last; i++ {
			ok = ok || ops[i].value == values[s]
		}
		if !ok {
			var may []uint64
			if first < 0 {
				may = append(may, t.base[s])
			}
			for i := max(first, 0); i <= last; i++ {
				may = append(may, ops[i].value)
			}
			return fmt.Errorf("sector %d has %#x, it may have %#x (of %d writes)", s, values[s], may, len(ops))
		}
	}
	return nil
}

// exact returns how an image differs from the disk at the end of an epoch.
func (t *timeline) exact(values []uint64, unread []bool, at cut) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fits(values, unread, at.from, at.to, 0, false)
}

// afterCrash returns how an image differs from that of a disk whose power
// failed: it has what was flushed, and of what was written since any part. It
// has what was flushed by the time least, at least, and what was there at the
// time begun; it has nothing that began after most.
func (t *timeline) afterCrash(values []uint64, unread []bool, begun, least, most int) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	barriers := []*guestOp{{start: begun, end: begun}}
	for _, f := range t.flushes {
		if f.start > begun && f.start < most {
			barriers = append(barriers, f)
		}
	}
	from := 0
	for i, f := range barriers {
		if f.end <= least {
			from = i
		}
	}
	for i := from; i < len(barriers); i++ {
		hi := most
		if i+1 < len(barriers) {
			hi = min(hi, barriers[i+1].end)
		}
		if err = t.fits(values, unread, barriers[i].start, hi, least, true); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w (%d flushes, from number %d on)", err, len(barriers)-1, from)
}

// differing returns the first sector in which two disks differ, or -1.
func differing(a, b []uint64) int {
	for s := range a {
		if a[s] != b[s] {
			return s
		}
	}
	return -1
}

// A line is where a disk's data comes from: each time that a domain was run from
// it has a number.
type line []int

// has reports whether a disk with this line has all that one with the other has.
func (l line) has(other line) bool {
	return !slices.ContainsFunc(other, func(n int) bool { return !slices.Contains(l, n) })
}

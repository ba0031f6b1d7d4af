package diskrepl

import (
	"slices"
	"sync"
)

// A rangeLock makes accesses to overlapping ranges take turns, in the order in
// which they came: a long range does not wait for ever beside short ones. The
// zero value is ready for use.
type rangeLock struct {
	mu      sync.Mutex
	cond    sync.Cond
	held    []span
	waiting []*span // the first one came first
}

type span struct{ off, end int64 }

func (s span) overlaps(o span) bool { return s.off < o.end && o.off < s.end }

// lock locks a range. It waits until no part of the range is locked, and until
// those have had their turn who came before and want a part of it.
func (l *rangeLock) lock(off, n int64) span {
	s := &span{off, off + n}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.free(s) {
		if l.cond.L == nil {
			l.cond.L = &l.mu
		}
		l.waiting = append(l.waiting, s)
		for !l.free(s) {
			l.cond.Wait()
		}
		i := slices.Index(l.waiting, s)
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
	l.held = append(l.held, *s)
	return *s
}

// free reports whether it is the turn of s.
func (l *rangeLock) free(s *span) bool {
	if slices.ContainsFunc(l.held, s.overlaps) {
		return false
	}
	for _, w := range l.waiting {
		if w == s {
			break
		}
		if s.overlaps(*w) {
			return false
		}
	}
	return true
}

func (l *rangeLock) unlock(s span) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.held, s); i >= 0 {
		last := len(l.held) - 1
		l.held[i] = l.held[last]
		l.held = l.held[:last]
	}
	if len(l.waiting) > 0 {
		l.cond.Broadcast()
	}
}

// Package rangelock locks ranges of a disk.
package rangelock

import (
	"slices"
	"sync"
)

// A Lock makes accesses to overlapping ranges take turns, in the order in which
// they came: a long range does not wait for ever beside short ones. The zero value
// is ready for use.
type Lock struct {
	mu      sync.Mutex
	cond    sync.Cond
	held    []Span
	waiting []*Span // the first one came first
}

// A Span is a range that is locked.
type Span struct {
	off, end int64
	shared   bool
}

// excludes reports whether two spans can't be held together.
func (s Span) excludes(o Span) bool { return s.off < o.end && o.off < s.end && !(s.shared && o.shared) }

// Lock locks a range. It waits until no part of the range is locked, and until
// those have had their turn who came before and want a part of it.
func (l *Lock) Lock(off, n int64) Span { return l.lock(Span{off: off, end: off + n}) }

// Share is Lock beside others that Share: it waits for those alone that Lock.
func (l *Lock) Share(off, n int64) Span { return l.lock(Span{off: off, end: off + n, shared: true}) }

func (l *Lock) lock(span Span) Span {
	s := &span
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
func (l *Lock) free(s *Span) bool {
	if slices.ContainsFunc(l.held, s.excludes) {
		return false
	}
	for _, w := range l.waiting {
		if w == s {
			break
		}
		if s.excludes(*w) {
			return false
		}
	}
	return true
}

// Unlock ends a Lock or a Share.
func (l *Lock) Unlock(s Span) {
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

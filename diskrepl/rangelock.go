package diskrepl

import "sync"

// A rangeLock excludes concurrent accesses to overlapping ranges. The zero
// value is ready for use.
type rangeLock struct {
	mu    sync.Mutex
	cond  sync.Cond
	held  []span
	waits int
}

type span struct{ off, end int64 }

// lock locks a range. It waits until no part of the range is locked.
func (l *rangeLock) lock(off, n int64) span {
	s := span{off, off + n}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.taken(s) {
		if l.cond.L == nil {
			l.cond.L = &l.mu
		}
		l.waits++
		l.cond.Wait()
		l.waits--
	}
	l.held = append(l.held, s)
	return s
}

// taken reports whether a part of the range is locked.
func (l *rangeLock) taken(s span) bool {
	for _, h := range l.held {
		if s.off < h.end && h.off < s.end {
			return true
		}
	}
	return false
}

func (l *rangeLock) unlock(s span) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, h := range l.held {
		if h == s {
			last := len(l.held) - 1
			l.held[i] = l.held[last]
			l.held = l.held[:last]
			break
		}
	}
	if l.waits > 0 {
		l.cond.Broadcast()
	}
}

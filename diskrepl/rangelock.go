package diskrepl

import "sync"

// A rangeLock makes accesses that overlap take turns. The zero value is ready.
type rangeLock struct {
	mu    sync.Mutex
	cond  sync.Cond
	held  []span
	waits int
}

type span struct{ off, end int64 }

// lock waits until nobody holds a part of the range, and holds it.
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

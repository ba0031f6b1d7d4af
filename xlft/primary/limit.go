package primary

import (
	"fmt"
	"time"

	"xlft/xlft/wire"
)

// A limit bounds a wait: a backup that is heard but does not answer, or a
// capture that hangs, is no protection. Time in which this process itself stood
// still does not count. A nil limit bounds nothing.
type limit struct {
	timer    *wire.AwakeTimer
	wait     time.Duration
	err      error
	progress *spool // each of its moves begins the wait again; nil: nothing does
}

func newLimit(wait time.Duration, what string, progress *spool) *limit {
	return &limit{wire.NewAwakeTimer(wait), wait, fmt.Errorf("%s within %v", what, wait), progress}
}

// due is ready when the wait is over; then extend says whether it really is.
func (l *limit) due() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.timer.C
}

// extend waits on, if there was progress.
func (l *limit) extend() bool {
	if l.progress == nil {
		return false
	}
	left := l.wait - time.Since(l.progress.lastMove())
	if left <= 0 {
		return false
	}
	l.timer.Reset(left)
	return true
}

// stop ends the wait, and returns nil for the caller to keep.
func (l *limit) stop() *limit {
	if l != nil {
		l.timer.Stop()
	}
	return nil
}

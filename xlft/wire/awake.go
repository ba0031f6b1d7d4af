package wire

import (
	"context"
	"net"
	"sync"
	"time"
)

// An AwakeTimer fires once this process has been awake for a given time.
//
// A process that was stopped, swapped out or starved of processor time finds
// all its ordinary timers expired when it goes on, and what others sent it
// meanwhile unread. It knows nothing of the others: by an AwakeTimer it still
// has most of the time in front of it, and reads first.
//
// The timer waits in steps. A step that took longer than maxStep steps counts as
// maxStep of them: for the rest of the step the process was not awake.
type AwakeTimer struct {
	C <-chan struct{} // gets one value when the time is over

	fired chan struct{}
	mu    sync.Mutex
	timer *time.Timer
	step  time.Duration
	since time.Time     // the present step's begin
	left  time.Duration // of the time awake, at the step's begin
	slept time.Duration
	turn  int // tells a callback of an earlier Reset
}

const (
	awakeSteps = 10 // steps in which a timer waits
	maxStep    = 2
)

// NewAwakeTimer returns a timer that fires after d.
func NewAwakeTimer(d time.Duration) *AwakeTimer {
	t := &AwakeTimer{fired: make(chan struct{}, 1)}
	t.C = t.fired
	t.Reset(d)
	return t
}

// Reset lets the timer fire after d from now on. What it may have fired before
// is forgotten.
func (t *AwakeTimer) Reset(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
	t.step, t.left, t.slept, t.since = max(d/awakeSteps, time.Millisecond), d, 0, time.Now()
	t.wait()
}

// Stop ends the wait. It returns how long the process was not awake, of the time
// since the last Reset.
func (t *AwakeTimer) Stop() (slept time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.count()
	}
	t.stop()
	return t.slept
}

func (t *AwakeTimer) stop() {
	t.turn++
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	select {
	case <-t.fired:
	default:
	}
}

func (t *AwakeTimer) wait() {
	turn := t.turn
	t.timer = time.AfterFunc(max(min(t.step, t.left), 0), func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.turn != turn {
			return
		}
		t.count()
		if t.left > 0 {
			t.wait()
			return
		}
		t.timer = nil
		t.fired <- struct{}{}
	})
}

// count ends a step.
func (t *AwakeTimer) count() {
	now := time.Now()
	took := now.Sub(t.since)
	awake := min(took, maxStep*t.step)
	t.left -= awake
	t.slept += took - awake
	t.since = now
}

// AwakeTimeout is context.WithTimeout by an AwakeTimer. Slept says, until cancel,
// how long the process was not awake so far.
func AwakeTimeout(ctx context.Context, d time.Duration) (_ context.Context, cancel func() (slept time.Duration)) {
	ctx, stop := context.WithCancelCause(ctx)
	t := NewAwakeTimer(d)
	go func() {
		select {
		case <-t.C:
			stop(context.DeadlineExceeded)
		case <-ctx.Done():
		}
	}()
	return ctx, func() time.Duration {
		slept := t.Stop()
		stop(context.Canceled)
		return slept
	}
}

// within bounds what is done on a connection until end is called: after d awake
// reads and writes fail with a timeout.
func within(c net.Conn, d time.Duration) (end func()) {
	c.SetDeadline(time.Time{})
	return bound(d, c.SetDeadline)
}

// bound sets a deadline that is over once d awake have passed, unless end was
// called.
func bound(d time.Duration, deadline func(time.Time) error) (end func()) {
	t := NewAwakeTimer(d)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-t.C:
			deadline(past)
		case <-done:
		}
	}()
	return func() {
		close(done)
		<-ended
		t.Stop()
		deadline(time.Time{})
	}
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

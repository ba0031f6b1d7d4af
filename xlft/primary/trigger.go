package primary

import (
	"context"
	"sync"
	"time"

	"xlft/xlft"
)

// Why names the reason of a checkpoint.
type Why string

const (
	WhyInterval Why = "epoch_max"
	WhyDirty    Why = "dirty_max"
	WhyBacklog  Why = "backlog"
	WhyOutput   Why = "output"
)

// A trigger asks for checkpoints: when the epoch is as long as it may be, when
// the domain has written many pages, when a gate fills up, and when output
// waits. It asks only while an epoch is open: from the ack of the checkpoint
// before until the next capture, while the domain is protected.
type trigger struct {
	epochMax time.Duration
	dirtyMax uint64 // pages; 0: no limit
	guest    xlft.Guest
	gate     xlft.Gate
	output   <-chan struct{} // the domain did something that the outside waits for

	mu      sync.Mutex
	resumed time.Time // when the domain last resumed: its epoch began then
	begun   time.Time // of the open epoch; zero if none is open
}

// captured closes the epoch that a checkpoint ended. The next one began when
// the domain resumed, and is opened by the checkpoint's ack.
func (t *trigger) captured(resumed time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resumed, t.begun = resumed, time.Time{}
}

// open opens the epoch that the domain is in, and returns when the epoch began.
func (t *trigger) open() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = t.resumed
	return t.begun
}

// close closes the open epoch: the domain is not protected any more.
func (t *trigger) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = time.Time{}
}

// since returns when the open epoch began, if there is one.
func (t *trigger) since() (begun time.Time, open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.begun, !t.begun.IsZero()
}

// maxPoll is the longest time between two looks at counters: however long an
// epoch may be, a gate fills up in its own time.
const maxPoll = 25 * time.Millisecond

// run calls fire when a checkpoint is due, until ctx ends. It looks at counters
// far more often than a checkpoint is due; the machine takes only what fits.
//
// It calls broken while a gate can't say what it holds: then the gate holds
// nothing that can be relied on.
func (t *trigger) run(ctx context.Context, fire func(Why), broken func(error)) {
	poll := time.NewTicker(min(max(t.epochMax/8, 2*time.Millisecond), maxPoll))
	defer poll.Stop()
	for failed := 0; ; {
		output := false
		select {
		case <-ctx.Done():
			return
		case <-t.output:
			output = true
		case <-poll.C:
		}
		if _, open := t.since(); open {
			// One failed look may be the kernel's doing: links come and go.
			if _, _, err := t.gate.Held(); err == nil {
				failed = 0
			} else if failed++; failed >= gateFailures {
				broken(err)
			}
		}
		if why := t.due(output); why != "" {
			fire(why)
		}
	}
}

// gateFailures is how many looks at a gate in a row have to fail.
const gateFailures = 3

// due returns why a checkpoint is due now; "" if none is.
func (t *trigger) due(output bool) Why {
	begun, open := t.since()
	switch {
	case !open:
		return ""
	case output:
		return WhyOutput
	case time.Since(begun) >= t.epochMax:
		return WhyInterval
	case t.backlogged():
		return WhyBacklog
	case t.dirty():
		return WhyDirty
	}
	return ""
}

// backlogged: a gate nears its limit, and would drop.
func (t *trigger) backlogged() bool {
	held, limit, err := t.gate.Held()
	return err == nil && limit > 0 && held > limit/2
}

func (t *trigger) dirty() bool {
	if t.dirtyMax == 0 {
		return false
	}
	n, err := t.guest.DirtyPages()
	return err == nil && n >= t.dirtyMax
}

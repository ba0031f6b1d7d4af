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
	// WhyFull: the epoch nears the memory that a checkpoint may take. If the
	// checkpoint before is not acked yet the domain has to wait for it; also if a
	// gate has reached its limit by then.
	WhyFull Why = "checkpoint_memory"
)

// A trigger asks for checkpoints: when the epoch is as long as it may be, when
// the domain has written many pages, when a gate fills up, and when output
// waits. It asks only while an epoch is open: from the ack of the checkpoint
// before until the next capture, while the domain is protected. From a capture
// until its ack it looks only whether the domain writes more than the next
// checkpoint can carry. While the domain's output is held and it is not known who
// owns the domain, it looks whether the gate holds what comes.
type trigger struct {
	epochMax time.Duration
	dirtyMax uint64 // pages; 0: no limit
	memory   int64  // bytes that a checkpoint may take; 0: no limit
	guest    xlft.Guest
	gate     xlft.Gate
	output   <-chan struct{} // the domain did something that the outside waits for

	mu      sync.Mutex
	resumed time.Time // when the domain last resumed: its epoch began then
	begun   time.Time // of the open epoch; zero if none is open
	flight  bool      // a checkpoint is captured and not acked
	held    bool      // the output is held, and there are no checkpoints
	caution int       // how often the memory did not suffice

	// The last look at the dirty pages; run's alone.
	looked time.Time
	seen   uint64
}

// captured closes the epoch that a checkpoint ended. The next one began when
// the domain resumed, and is opened by the checkpoint's ack.
func (t *trigger) captured(resumed time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resumed, t.begun, t.flight = resumed, time.Time{}, true
}

// open opens the epoch that the domain is in, and returns when the epoch began.
func (t *trigger) open() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun, t.flight = t.resumed, false
	return t.begun
}

// close closes the open epoch: the domain is not protected any more.
func (t *trigger) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun, t.flight, t.held = time.Time{}, false, false
}

// watch closes the open epoch, and looks after the gate: it goes on holding.
func (t *trigger) watch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun, t.flight, t.held = time.Time{}, false, true
}

// overflowed says that a checkpoint took more memory than it may, since the
// domain wrote so much between two looks. From now on the trigger looks twice as
// often, and lets the domain write half as much.
func (t *trigger) overflowed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.caution = min(t.caution+1, mostCaution)
}

// mostCaution leaves looks every few milliseconds.
const mostCaution = 5

// since returns when the open epoch began, if there is one.
func (t *trigger) since() (begun time.Time, open, flight, held bool, caution int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.begun, !t.begun.IsZero(), t.flight, t.held, t.caution
}

// maxPoll is the longest time between two looks at counters: however long an
// epoch may be, a gate fills up in its own time.
const maxPoll = 25 * time.Millisecond

// minLook is the shortest time between two looks at the dirty pages: for each,
// Xen stops all of the domain's vCPUs.
const minLook = 50 * time.Millisecond

// run calls fire when a checkpoint is due, until ctx ends. It looks at counters
// far more often than a checkpoint is due; the machine takes only what fits.
//
// It calls broken while a gate can't say what it holds: then the gate holds
// nothing that can be relied on.
func (t *trigger) run(ctx context.Context, fire func(Why), broken func(error)) {
	every := min(max(t.epochMax/8, 2*time.Millisecond), maxPoll)
	poll := time.NewTicker(every)
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
		_, open, flight, held, caution := t.since()
		if t.look(caution) < every {
			every = t.look(caution)
			poll.Reset(every)
		}
		var fill float64
		if open || flight || held {
			held, limit, err := t.gate.Held() // once: it asks the kernel
			// One failed look may be the kernel's doing: links come and go.
			if err == nil {
				failed = 0
				if limit > 0 {
					fill = float64(held) / float64(limit)
				}
			} else if failed++; failed >= gateFailures {
				broken(err)
			}
		}
		if why := t.due(output, fill); why != "" {
			fire(why)
		}
	}
}

// gateFailures is how many looks at a gate in a row have to fail.
const gateFailures = 3

// due returns why a checkpoint is due now; "" if none is. Fill is how much of the
// fullest gate's limit is used; 0 if that is not known.
func (t *trigger) due(output bool, fill float64) Why {
	begun, open, flight, held, caution := t.since()
	switch {
	case (flight || held) && fill >= 1:
		return WhyFull // what the domain sends now, this host would have no memory for
	case flight:
		if n, more, ok := t.dirty(caution); ok && t.full(n+more, caution) {
			return WhyFull
		}
		return ""
	case !open:
		return ""
	case output:
		return WhyOutput
	case time.Since(begun) >= t.epochMax:
		return WhyInterval
	case fill > 0.5: // it nears its limit
		return WhyBacklog
	}
	switch n, more, ok := t.dirty(caution); {
	case !ok:
		return ""
	case t.dirtyMax > 0 && n >= t.dirtyMax:
		return WhyDirty
	case t.full(n+max(more, n/2), caution): // some room: it goes on writing until it is suspended
		return WhyFull
	}
	return ""
}

// dirty counts the pages that the domain wrote in its present epoch, and how
// many it wrote since the last look: as many may come until the next one. It is
// not ok if the last look is too fresh for another, or nobody needs the number.
func (t *trigger) dirty(caution int) (n, more uint64, ok bool) {
	if t.dirtyMax == 0 && t.memory == 0 || time.Since(t.looked) < t.look(caution) {
		return 0, 0, false
	}
	t.looked = time.Now()
	n, err := t.guest.DirtyPages()
	if more = n; t.seen < n {
		more = n - t.seen
	}
	t.seen = n
	return n, more, err == nil
}

// look is the time between two looks at the dirty pages.
func (t *trigger) look(caution int) time.Duration {
	return max(t.epochMax/4, minLook) >> caution
}

// bytesPerPage is what a page takes in the stream: its data and its number.
const bytesPerPage = 4096 + 8

// full: so many pages are four fifths of what a checkpoint may take.
func (t *trigger) full(pages uint64, caution int) bool {
	return t.memory > 0 && pages > uint64(t.memory)*4/5>>caution/bytesPerPage
}

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
	WhyEvent    Why = "event" // the domain has sent something
	WhyDirty    Why = "dirty_max"
	WhyBacklog  Why = "backlog"
	// WhyFull: the epoch nears the memory that a checkpoint may take. If the
	// checkpoint before is not acked yet the domain has to wait for it; also if a
	// gate has reached its limit by then.
	WhyFull       Why = "checkpoint_memory"
	WhyFirst      Why = "first" // of a protection
	WhySwitchOver Why = "switch-over"
)

// A trigger asks for checkpoints: when the epoch is as long as it may be, when
// the domain has written many pages, when a gate fills up, and, as the mode says,
// when output waits. It asks only while an epoch is open: from the ack of the
// checkpoint before until the next one is asked for, while the domain runs and is
// protected. Output that the domain sends at another time is remembered for the
// epoch that it belongs to, the one that began with the last seal.
//
// While a checkpoint is in flight it looks only whether the domain writes more
// than the next checkpoint can carry. While the domain's output is held and it is
// not known who owns the domain, it looks whether the gate holds what comes.
type trigger struct {
	guest  xlft.Guest
	gate   xlft.Gate
	events <-chan struct{} // ready once the domain has sent something since the last seal
	polled func() bool     // whether events come only from looks at the gate; nil: they don't
	memory int64           // bytes that a checkpoint may take; 0: no limit

	changed chan struct{} // has room for one: something below has changed

	mu      sync.Mutex
	pacing  xlft.Pacing
	phase   phase
	spoke   bool      // the domain has sent something since the last seal
	runs    bool      // since resumed
	resumed time.Time // when the domain last resumed: its epoch began then
	epoch   uint64    // counts that
	sent    time.Time // when the newest checkpoint was whole here
	pauses  pauses
	pages   pageRate
	caution int // how often the memory did not suffice

	looks looks // run's alone
}

// phase is what a trigger looks for.
type phase int

const (
	closed  phase = iota // nothing: no checkpoints are taken
	open                 // what ends the epoch
	taking               // a checkpoint is asked for: whether the gate holds
	flight               // it is captured and not acked: whether the next one will do
	holding              // the output is held, and there are no checkpoints
)

func newTrigger(guest xlft.Guest, gate xlft.Gate, events <-chan struct{}, memory int64, p xlft.Pacing) *trigger {
	return &trigger{guest: guest, gate: gate, events: events, memory: memory, pacing: p, changed: make(chan struct{}, 1)}
}

// set changes what is guarded.
func (t *trigger) set(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// change changes it so that something may be due sooner.
func (t *trigger) change(f func()) {
	t.set(f)
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// pace sets when checkpoints are taken.
func (t *trigger) pace(p xlft.Pacing) { t.change(func() { t.pacing = p }) }

// paced returns that, and the window as it is now; 0 if the mode has none.
func (t *trigger) paced() (p xlft.Pacing, window time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pacing.Mode == xlft.ModeEvent {
		window = t.pacing.Window(t.pauses.usual())
	}
	return t.pacing, window
}

// take closes the epoch: a checkpoint has been asked for.
func (t *trigger) take() { t.set(func() { t.phase = taking }) }

// sealing ends the epoch of a suspended domain. It has to come before the seal:
// what the domain sent up to now is in the checkpoint, and what its backends pass
// on after the seal belongs to the next epoch.
func (t *trigger) sealing() {
	t.set(func() {
		t.runs, t.spoke = false, false
		t.pages.ran = time.Since(t.resumed)
	})
}

// resume says that the domain runs on, after a checkpoint that stopped it for
// pause.
func (t *trigger) resume(pause time.Duration) {
	t.change(func() {
		t.runs, t.resumed = true, time.Now()
		t.epoch++
		t.pauses.add(pause)
	})
}

// captured says that the checkpoint is whole here.
func (t *trigger) captured() {
	t.change(func() {
		t.sent = time.Now()
		if t.phase == taking { // else the domain is not protected any more
			t.phase = flight
		}
	})
}

// wrote says how many pages the checkpoint had that was captured last.
func (t *trigger) wrote(pages uint64) { t.set(func() { t.pages.add(pages) }) }

// open opens the epoch that the domain is in, and returns since when its
// checkpoint waited for this.
func (t *trigger) open() (sent time.Time) {
	t.change(func() { t.phase, sent = open, t.sent })
	return sent
}

// close closes the epoch: the domain is not protected any more.
func (t *trigger) close() { t.set(func() { t.phase = closed }) }

// watch closes the epoch, and looks after the gate: it goes on holding.
func (t *trigger) watch() { t.change(func() { t.phase = holding }) }

// overflowed says that a checkpoint took more memory than it may, since the
// domain wrote so much between two looks. From now on the trigger looks twice as
// often, and lets the domain write half as much.
func (t *trigger) overflowed() { t.set(func() { t.caution = min(t.caution+1, mostCaution) }) }

// mostCaution leaves looks every few milliseconds.
const mostCaution = 5

// A moment is what is guarded, at one time.
type moment struct {
	xlft.Pacing
	phase   phase
	spoke   bool
	runs    bool
	resumed time.Time
	epoch   uint64
	window  time.Duration
	rate    float64
	caution int
	now     time.Time
}

func (t *trigger) moment() moment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return moment{
		Pacing: t.pacing, phase: t.phase, spoke: t.spoke, runs: t.runs, resumed: t.resumed, epoch: t.epoch,
		window: t.pacing.Window(t.pauses.usual()), rate: t.pages.most(), caution: t.caution, now: time.Now(),
	}
}

// eventAt returns when the domain's output ends the epoch; false if it does not.
func (m *moment) eventAt() (time.Time, bool) {
	switch {
	case m.phase != open || !m.runs || !m.spoke:
		return time.Time{}, false
	case m.Mode == xlft.ModeStrict:
		return m.resumed, true
	case m.Mode == xlft.ModeEvent:
		return m.resumed.Add(m.window), true
	}
	return time.Time{}, false
}

// poll is the shortest time between two looks at the gate, and the time before a
// request for a checkpoint is repeated. However long an epoch may be, a gate fills up
// in its own time.
func (m *moment) poll() time.Duration {
	return min(max(m.EpochMax/8, 2*time.Millisecond), maxPoll)
}

const maxPoll = 25 * time.Millisecond

// run calls fire when a checkpoint is due, until ctx ends. It looks at the gate far
// more often than a checkpoint is due; the machine takes only what fits.
//
// It calls broken while a gate can't say what it holds: then the gate holds
// nothing that can be relied on.
func (t *trigger) run(ctx context.Context, fire func(Why), broken func(error)) {
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	var gate gateLooks
	var last asked // for a checkpoint
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.events:
			t.change(func() { t.spoke = true })
		case <-t.changed:
		case <-alarm.C:
		}
		m := t.moment()
		if m.phase == closed {
			alarm.Stop() // a change is said
			continue
		}
		var fill float64
		if !m.now.Before(gate.next(&m)) {
			var err error
			if fill, err = gate.look(&m, t.gate, t.polled); err != nil {
				broken(err)
			}
		}
		if last.again(&m).After(m.now) {
			alarm.Reset(min(m.poll(), last.again(&m).Sub(m.now)))
			continue
		}
		if why := t.due(&m, fill); why != "" {
			last = asked{m.now, m.epoch}
			fire(why)
		}
		alarm.Reset(time.Until(t.next(&m, gate.next(&m), last)))
	}
}

// asked is when a checkpoint was asked for, and of which epoch.
type asked struct {
	at    time.Time
	epoch uint64
}

// again returns when one may be asked for again: of the next epoch at once.
func (a asked) again(m *moment) time.Time {
	if a.epoch != m.epoch {
		return time.Time{}
	}
	return a.at.Add(m.poll())
}

// next returns when something may become due by itself; look is when the gate is to be
// looked at.
func (t *trigger) next(m *moment, look time.Time, last asked) time.Time {
	next := look
	sooner := func(at time.Time, ok bool) {
		if ok && at.Before(next) {
			next = at
		}
	}
	sooner(m.resumed.Add(m.EpochMax), m.phase == open && m.runs)
	sooner(m.eventAt())
	sooner(t.looks.next(m, t.most(m)))
	if again := last.again(m); next.Before(again) {
		next = again
	}
	return next
}

// due returns why a checkpoint is due now; "" if none is. Fill is how much of the
// fullest gate's limit is used; 0 if that is not known.
func (t *trigger) due(m *moment, fill float64) Why {
	at, waits := m.eventAt()
	switch {
	case (m.phase == flight || m.phase == holding) && fill >= 1:
		return WhyFull // what the domain sends now, this host would have no memory for
	case m.phase == flight:
		if n, more, ok := t.dirty(m); ok && t.full(n+more, m.caution) {
			return WhyFull
		}
		return ""
	case m.phase != open || !m.runs:
		return ""
	case waits && !m.now.Before(at):
		return WhyEvent
	case m.now.Sub(m.resumed) >= m.EpochMax:
		return WhyInterval
	case fill > 0.5: // it nears its limit
		return WhyBacklog
	}
	switch n, more, ok := t.dirty(m); {
	case !ok:
		return ""
	case m.DirtyMax > 0 && n >= m.DirtyMax:
		return WhyDirty
	case t.full(n+max(more, n/2), m.caution): // some room: it goes on writing until it is suspended
		return WhyFull
	}
	return ""
}

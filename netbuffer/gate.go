package netbuffer

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Line is one vif's way through a gate.
type Line struct {
	Name  string // of the vif
	Queue Queue
}

// A Gate holds the output of all vifs of a domain by epoch.
//
//	open --Seal--> holding, epoch sealed --Release--> holding --Seal--> ...
//	  ^                      |                          |
//	  +-------Abandon--------+--------------------------+
//
// Its methods may be called from several goroutines.
type Gate struct {
	opts Options
	host host // nil behind New

	mu      sync.Mutex
	lines   []*line
	holding bool
	sealed  bool
	epoch   uint64 // newest that was sealed
	adopted bool   // found holding
	broken  error
	closed  bool
}

type line struct {
	Line
	gone bool // the vif vanished; its queue may still hold packets

	// mark is what had arrived when the newest epoch was sealed. More must not
	// have passed before the next epoch is sealed and released.
	mark uint64
}

// host is what a gate needs of the machine besides its queues.
type host interface {
	// added returns vifs of the domain that have no line, and tells lines whose
	// vif is gone.
	added(lines []*line) ([]string, error)
	// extend gives gates to vifs that have none.
	extend(lines []*line, holding bool) ([]*line, error)
	// remember writes down, for the next process, whether the gate holds.
	remember(l *line, holding bool) error
	// redirected says whether the vif's packets still go through the queue.
	redirected(l *line) error
	// settled says whether nothing is on its way between queue and vif.
	settled(l *line) (bool, error)
	// bypass ends the redirect; the queue stays.
	bypass(l *line) error
	// destroy drops the queue and all it holds.
	destroy(l *line) error
	close() error
}

// Options say how a gate is built. The zero value is good.
type Options struct {
	// Limit is how many bytes a vif may have waiting; more is dropped. 0 means
	// DefaultLimit.
	Limit uint32

	// Vifs names interfaces of the domain that neither their name nor sysfs
	// tells, for example vifs of another driver. They must exist.
	Vifs []string

	// Quiesce keeps the domain from sending until resume is called. Close calls
	// it for the moment in which the redirect is taken away: a packet that no
	// longer goes through the gate could otherwise overtake one that does. If
	// nil, Close may reorder.
	Quiesce func() (resume func(), err error)

	// Timeout bounds each wait for a queue to fall quiet or empty. 0 means
	// DefaultTimeout.
	Timeout time.Duration
}

const (
	// DefaultLimit is what a 10 Gbit/s interface sends in 250 ms, far more than
	// an epoch takes.
	DefaultLimit = 10_000_000_000 / 8 / 4

	// DefaultTimeout bounds waits for a queue.
	DefaultTimeout = time.Second

	// stuck is how long a released packet may stay before its release counts
	// as over.
	stuck = 2 * time.Millisecond
)

// nap sleeps between two looks at a queue. time.Sleep rounds up to a
// millisecond in an idle process, and the domain is suspended meanwhile.
func nap() {
	ts := unix.NsecToTimespec(50_000)
	_ = unix.Nanosleep(&ts, nil)
}

func (o Options) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultTimeout
}

func (o Options) limit() uint32 {
	if o.Limit > 0 {
		return o.Limit
	}
	return DefaultLimit
}

// New makes a gate of queues that let everything out at present. Tests use it
// with netbuffertest's queue; Open is the real one.
func New(opts Options, lines ...Line) *Gate {
	g := &Gate{opts: opts}
	for _, l := range lines {
		g.lines = append(g.lines, &line{Line: l})
	}
	return g
}

// Seal ends epoch on all vifs and starts the next. Call it while the domain is
// suspended: what it sends after it resumes belongs to the next epoch. The
// first Seal starts holding; what went before has left.
//
// The plug qdisc counts one sealed epoch, not a queue of them. A second plug
// would overwrite the first count and the next release would let output out
// ahead of its checkpoint; so Seal returns ErrHeld until Release.
//
// After ErrHeld, ErrEpoch, ErrAdopted, ErrBusy or ErrNewVif nothing was sealed
// and Seal can be tried again. Any other error is final (ErrBroken): some vifs
// may be sealed and others not. All that is held stays held.
func (g *Gate) Seal(epoch uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return g.errorf("seal epoch %d: %w", epoch, ErrClosed)
	case g.adopted:
		return g.errorf("seal epoch %d: %w", epoch, ErrAdopted)
	case g.broken != nil:
		return g.errorf("seal epoch %d: %w", epoch, g.broken)
	case g.sealed:
		return g.errorf("seal epoch %d: %w: epoch %d", epoch, ErrHeld, g.epoch)
	case epoch <= g.epoch:
		return g.errorf("seal epoch %d: %w: epoch %d was sealed before", epoch, ErrEpoch, g.epoch)
	}
	if err := g.checkVifs(); err != nil {
		return err
	}

	if !g.holding {
		if err := g.startHolding(); err != nil {
			return g.errorf("seal epoch %d: %w", epoch, err)
		}
	}
	deadline := time.Now().Add(g.opts.timeout())
	before := make([]QueueState, len(g.lines))
	for i, l := range g.lines {
		st, err := l.ready(deadline)
		if err != nil {
			return g.errorf("seal epoch %d: %s: %w", epoch, l.Name, err)
		}
		if st.Passed > l.mark {
			return g.fail("seal epoch %d: %s: %w: %d bytes", epoch, l.Name, ErrLeak, st.Passed-l.mark)
		}
		before[i] = st
	}
	for i, l := range g.lines {
		if err := l.seal(before[i], deadline); err != nil {
			return g.fail("seal epoch %d: %s: %w", epoch, l.Name, err)
		}
	}
	g.sealed, g.epoch = true, epoch
	return nil
}

// checkVifs looks for vifs that came since the last look.
func (g *Gate) checkVifs() error {
	if g.host == nil {
		return nil
	}
	added, err := g.host.added(g.lines)
	if err != nil {
		return err
	}
	if len(added) > 0 {
		return &NewVifError{added}
	}
	return nil
}

// startHolding makes all queues hold. A packet that waits in a queue that lets
// everything out is not counted by the plug, so all must be empty at that
// moment.
func (g *Gate) startHolding() error {
	deadline := time.Now().Add(g.opts.timeout())
	for _, l := range g.lines {
		// Write it down first: a gate that holds and is not known to hold would
		// be let out by the next process.
		if g.host != nil {
			if err := g.host.remember(l, true); err != nil {
				return err
			}
		}
	}
	for i, l := range g.lines {
		if err := l.hold(deadline); err != nil {
			// Nothing is sealed yet, so nothing needs to be held.
			for _, l := range g.lines[:i+1] {
				err = errors.Join(err, l.Queue.Change(ReleaseIndefinite))
			}
			for _, l := range g.lines {
				if g.host != nil {
					err = errors.Join(err, g.host.remember(l, false))
				}
			}
			return fmt.Errorf("%s: %w", l.Name, err)
		}
	}
	g.holding = true
	return nil
}

// hold turns a queue that lets everything out into one that holds.
func (l *line) hold(deadline time.Time) error {
	for {
		if err := l.drain(deadline); err != nil {
			return err
		}
		if err := l.Queue.Change(Buffer); err != nil {
			return err
		}
		st, err := l.Queue.State()
		if err != nil {
			return err
		}
		if st.Packets == 0 {
			l.mark = st.arrived()
			return nil
		}
		// One slipped in, counted or not. Let it out and try again.
		if err := l.Queue.Change(ReleaseIndefinite); err != nil {
			return err
		}
	}
}

// seal ends an epoch of one queue.
//
// The kernel changes its counters without the lock that an arriving packet
// takes (plug_change in sch_plug.c), so a packet that arrives at that very
// moment can leave a wrong count behind, and with it credit for packets of a
// later epoch. The domain is suspended, but its backend may still have packets
// of this epoch. So look whether one came; if so, wait and buffer again. That
// can only make the count too small: everything in the queue is of this epoch
// or older.
func (l *line) seal(st QueueState, deadline time.Time) (err error) {
	if st.Passed < l.mark && st.arrived() == l.mark {
		// A count was too small before. All that waits is released already and
		// nothing has come since: start afresh.
		if err := l.Queue.Change(ReleaseIndefinite); err != nil {
			return err
		}
		return l.hold(deadline)
	}
	for {
		before := st.arrived()
		if err := l.Queue.Change(Buffer); err != nil {
			return err
		}
		if st, err = l.Queue.State(); err != nil {
			return err
		}
		if st.arrived() == before {
			l.mark = before
			return nil
		}
		if st, err = l.calm(deadline); err != nil {
			return err
		}
	}
}

// Release lets epoch out. Call it once the backup holds its checkpoint. It
// returns when the kernel has been told, not when the last packet is gone.
func (g *Gate) Release(epoch uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return g.errorf("release epoch %d: %w", epoch, ErrClosed)
	case g.broken != nil:
		return g.errorf("release epoch %d: %w", epoch, g.broken)
	case !g.sealed || epoch != g.epoch:
		return g.errorf("release epoch %d: %w", epoch, ErrEpoch)
	}
	for _, l := range g.lines {
		if err := l.Queue.Change(ReleaseOne); err != nil {
			return g.fail("release epoch %d: %s: %w", epoch, l.Name, err)
		}
	}
	g.sealed = false
	return nil
}

// Abandon lets everything out and stops holding. Call it when protection is
// over and this host is known to own the domain. The gate stays in place; the
// next Seal starts holding again.
func (g *Gate) Abandon() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return g.errorf("abandon: %w", ErrClosed)
	}
	return g.abandon()
}

func (g *Gate) abandon() error {
	var errs error
	for _, l := range g.lines {
		if err := l.Queue.Change(ReleaseIndefinite); err != nil {
			errs = errors.Join(errs, g.errorf("abandon: %s: %w", l.Name, err))
			continue
		}
		if g.host != nil {
			errs = errors.Join(errs, g.host.remember(l, false))
		}
	}
	if errs == nil {
		g.holding, g.sealed, g.adopted, g.broken = false, false, false, nil
	}
	return errs
}

// Close lets everything out, takes the redirects away and removes the gate.
// With Options.Quiesce no packet is lost and none overtakes another. After
// ErrBusy the gate still stands, lets everything through, and Close can be
// repeated. Close of a closed gate does nothing.
func (g *Gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	if err := g.abandon(); err != nil {
		return err
	}
	if g.host == nil {
		g.closed = true
		return nil
	}
	if err := g.bypass(); err != nil {
		return err
	}
	// A packet that was in the classifier when its filter went may still come.
	if err := g.settle(10 * time.Millisecond); err != nil {
		return err
	}
	var errs error
	for _, l := range g.lines {
		if err := g.host.destroy(l); err != nil {
			errs = errors.Join(errs, g.errorf("close: %s: %w", l.Name, err))
		}
	}
	if errs == nil {
		g.closed = true
		errs = g.host.close()
	}
	return errs
}

// bypass takes the redirects away while the domain is quiet.
func (g *Gate) bypass() error {
	if g.opts.Quiesce != nil {
		resume, err := g.opts.Quiesce()
		if err != nil {
			return g.errorf("close: quiesce: %w", err)
		}
		defer resume()
	}
	if err := g.settle(time.Millisecond); err != nil {
		return err
	}
	var errs error
	for _, l := range g.lines {
		if err := g.host.bypass(l); err != nil {
			errs = errors.Join(errs, g.errorf("close: %s: %w", l.Name, err))
		}
	}
	return errs
}

// settle waits until nothing is in the queues nor on its way out of them, and
// nothing new came for a while.
func (g *Gate) settle(quiet time.Duration) error {
	deadline := time.Now().Add(g.opts.timeout())
	for _, l := range g.lines {
		var since time.Time
		last := ^uint64(0)
		for {
			st, err := l.Queue.State()
			if err != nil {
				return g.errorf("close: %s: %w", l.Name, err)
			}
			settled, err := g.host.settled(l)
			if err != nil {
				return g.errorf("close: %s: %w", l.Name, err)
			}
			now := time.Now()
			if !settled || st.Packets > 0 || st.Passed != last {
				since, last = now, st.Passed
			}
			if now.Sub(since) >= quiet {
				break
			}
			if now.After(deadline) {
				return g.errorf("close: %s: %w", l.Name, ErrBusy)
			}
			nap()
		}
	}
	return nil
}

// Discard drops what is held and removes the gate. It is for the loser of an
// arbitration, after the domain was destroyed. If a vif still exists its output
// goes nowhere from now on.
func (g *Gate) Discard() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	var errs error
	for _, l := range g.lines {
		if g.host == nil {
			continue
		}
		if err := g.host.destroy(l); err != nil {
			errs = errors.Join(errs, g.errorf("discard: %s: %w", l.Name, err))
		}
	}
	if errs == nil {
		g.closed = true
		if g.host != nil {
			errs = g.host.close()
		}
	}
	return errs
}

// Extend gives gates to vifs that appeared since Open and returns their names.
// If the gate holds, theirs hold from the start; what they sent before was not
// held.
func (g *Gate) Extend() ([]string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, g.errorf("extend: %w", ErrClosed)
	}
	if g.host == nil {
		return nil, nil
	}
	lines, err := g.host.extend(g.lines, g.holding)
	var names []string
	for _, l := range lines {
		g.lines = append(g.lines, l)
		names = append(names, l.Name)
	}
	return names, err
}

// Holding reports whether packets wait for a release. A gate that Open found
// holding is Adopted too, until Abandon.
func (g *Gate) Holding() (holding, adopted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.holding, g.adopted
}

// Vifs returns the names of the vifs behind the gate.
func (g *Gate) Vifs() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := make([]string, len(g.lines))
	for i, l := range g.lines {
		names[i] = l.Name
	}
	return names
}

// Stats say what waits.
type Stats struct {
	Holding bool
	Sealed  uint64 // epoch that is sealed and not released; 0 if none
	Vifs    []VifStats
	Packets uint64 // of all vifs
	Bytes   uint64 // of all vifs
	Drops   uint64 // of all vifs, packets that found their queue full
}

// VifStats say what waits behind one vif.
type VifStats struct {
	Name    string
	Packets uint64
	Bytes   uint64
	Limit   uint64 // of Bytes
	Passed  uint64 // bytes that left
	Drops   uint64 // packets that found the queue full
	Gone    bool   // the vif vanished
}

// Fullest returns the largest Bytes/Limit of a vif, 0 to 1: a gate that fills
// up needs a checkpoint before it has to drop.
func (s Stats) Fullest() float64 {
	full := 0.0
	for _, v := range s.Vifs {
		if v.Limit > 0 {
			full = max(full, float64(v.Bytes)/float64(v.Limit))
		}
	}
	return full
}

// Stats reads the queues, and checks that the vifs' packets still go through
// them: ErrBypassed says that somebody removed a redirect. The numbers are
// good even then.
func (g *Gate) Stats() (Stats, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Stats{Holding: g.holding}
	if g.sealed {
		s.Sealed = g.epoch
	}
	if g.closed {
		return s, g.errorf("stats: %w", ErrClosed)
	}
	var errs error
	for _, l := range g.lines {
		st, err := l.Queue.State()
		if err != nil {
			errs = errors.Join(errs, g.errorf("stats: %s: %w", l.Name, err))
			continue
		}
		if g.host != nil && !l.gone {
			if err := g.host.redirected(l); err != nil {
				errs = errors.Join(errs, g.errorf("stats: %s: %w", l.Name, err))
			}
		}
		s.Vifs = append(s.Vifs, VifStats{l.Name, st.Packets, st.Bytes, uint64(g.opts.limit()), st.Passed, st.Drops, l.gone})
		s.Packets += st.Packets
		s.Bytes += st.Bytes
		s.Drops += st.Drops
	}
	return s, errs
}

// ready waits until nothing arrives at the queue and what was released last
// has left. The kernel adds a release to what is still to leave without a
// lock, so one must be over before the next can come.
func (l *line) ready(deadline time.Time) (QueueState, error) {
	st, err := l.calm(deadline)
	if err != nil {
		return st, err
	}
	for since := time.Now(); st.Passed < l.mark && time.Since(since) < stuck; {
		nap()
		next, err := l.calm(deadline)
		if err != nil {
			return st, err
		}
		if next.Passed != st.Passed {
			since = time.Now()
		}
		st = next
	}
	return st, nil
}

// calm waits until two looks in a row see the same.
func (l *line) calm(deadline time.Time) (QueueState, error) {
	st, err := l.Queue.State()
	if err != nil {
		return st, err
	}
	for {
		next, err := l.Queue.State()
		if err != nil || next == st {
			return next, err
		}
		st = next
		if time.Now().After(deadline) {
			return st, ErrBusy
		}
		nap()
	}
}

// drain waits until the queue is empty.
func (l *line) drain(deadline time.Time) error {
	for {
		st, err := l.Queue.State()
		if err != nil {
			return err
		}
		if st.Packets == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %d wait", ErrBusy, st.Packets)
		}
		nap()
	}
}

func (g *Gate) errorf(format string, args ...any) error {
	return fmt.Errorf("netbuffer: "+format, args...)
}

// fail makes the gate broken for good.
func (g *Gate) fail(format string, args ...any) error {
	err := g.errorf(format, args...)
	g.broken = fmt.Errorf("%w after: %w", ErrBroken, err)
	return err
}

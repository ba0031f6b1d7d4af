package netbuffer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Line is one vif and its path through a gate.
type Line struct {
	Name string // of the vif
	Path Path
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
	gone bool // the vif vanished; its queues may still hold packets

	// now is the queue that gets packets. The other one has the epoch before:
	// held, or released and leaving, or empty.
	now   int
	ready bool // the other queue is empty and holds
}

// host is what a gate needs of the machine besides its paths.
type host interface {
	// added returns vifs of the domain that have no line, and tells lines whose
	// vif is gone.
	added(lines []*line) ([]string, error)
	// extend gives gates to vifs that have none.
	extend(lines []*line, holding bool) ([]*line, error)
	// remember writes down, for the next process, whether the gate holds.
	remember(l *line, holding bool) error
	// redirected says whether the vif's packets still go to the queues.
	redirected(l *line) error
	// bypass ends the redirect; the queues stay.
	bypass(l *line) error
	// destroy drops the queues and all they hold.
	destroy(l *line) error
	close() error
}

// Options say how a gate is built. The zero value is good.
type Options struct {
	// Limit is how many bytes of one epoch a vif may have waiting; more is
	// dropped. 0 means DefaultLimit.
	Limit uint32

	// Vifs names interfaces of the domain that neither their name nor sysfs
	// tells, for example vifs of another driver. They must exist.
	Vifs []string

	// Quiesce keeps the domain from sending until resume is called. Close calls
	// it for the moment in which the redirect is taken away: a packet that no
	// longer goes through the gate could otherwise overtake one that does. If
	// nil, Close may reorder.
	Quiesce func() (resume func(), err error)

	// Timeout bounds each wait for released packets to leave. 0 means
	// DefaultTimeout.
	Timeout time.Duration
}

const (
	// DefaultLimit is what a 10 Gbit/s interface sends in 250 ms, far more than
	// an epoch takes.
	DefaultLimit = 10_000_000_000 / 8 / 4

	// DefaultTimeout bounds waits for packets to leave.
	DefaultTimeout = time.Second

	// linger is how long Release waits for packets to leave, so that the next
	// Seal, in the domain's pause, need not.
	linger = 10 * time.Millisecond

	// quiet is how long nothing must have come from a vif whose domain is
	// suspended, or had its redirect taken away, to count as nothing more.
	quiet = 10 * time.Millisecond
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

// New makes a gate of paths whose first queue lets everything out at present
// and whose second is empty and holds. Tests use it with netbuffertest's Path;
// Open is the real one.
func New(opts Options, lines ...Line) *Gate {
	g := &Gate{opts: opts}
	for _, l := range lines {
		g.lines = append(g.lines, &line{Line: l})
	}
	return g
}

// Seal ends epoch on all vifs and starts the next. Call it while the domain is
// suspended: what it sends after it resumes belongs to the next epoch. What
// its backends still pass on meanwhile is held with the next epoch: late, never
// early. The first Seal starts holding; what went before has left.
//
// There are two queues, one for the sealed epoch and one for the running one,
// so Seal returns ErrHeld until Release.
//
// After ErrHeld, ErrEpoch, ErrAdopted, ErrBusy or ErrNewVif nothing was sealed
// and Seal can be tried again. If turning a vif over fails, later calls return
// ErrBroken: some vifs may be sealed and others not. All that is held stays
// held.
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
	deadline := time.Now().Add(g.opts.timeout())
	for _, l := range g.lines {
		if err := l.prepare(deadline); err != nil {
			return g.errorf("seal epoch %d: %s: %w", epoch, l.Name, err)
		}
	}
	if !g.holding && g.host != nil {
		// Write it down first: a gate that holds and is not known to hold would
		// be let out by the next process.
		for _, l := range g.lines {
			if err := g.host.remember(l, true); err != nil {
				return g.errorf("seal epoch %d: %w", epoch, err)
			}
		}
	}
	for _, l := range g.lines {
		if err := l.turn(); err != nil {
			return g.fail("seal epoch %d: %s: %w", epoch, l.Name, err)
		}
	}
	g.holding, g.sealed, g.epoch = true, true, epoch
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

// prepare makes the other queue ready to take an epoch. What it had is
// released; it must be gone before the queue can hold again.
func (l *line) prepare(deadline time.Time) error {
	if l.ready {
		return nil
	}
	if err := l.wait(1-l.now, deadline); err != nil {
		return err
	}
	if err := l.Path.Change(1-l.now, Hold); err != nil {
		return err
	}
	l.ready = true
	return nil
}

// turn sends what comes from now on to the other queue.
func (l *line) turn() error {
	if err := l.Path.Steer(1 - l.now); err != nil {
		return err
	}
	l.now, l.ready = 1-l.now, false
	return nil
}

// wait waits until a queue is empty. It looks twice: the last packet counts as
// gone when it is being passed on.
func (l *line) wait(queue int, deadline time.Time) error {
	for seen := 0; ; {
		empty, err := l.Path.Empty(queue)
		if err != nil {
			return err
		}
		if !empty {
			seen = 0
		} else if seen++; seen == 2 {
			return nil
		}
		if time.Now().After(deadline) {
			return ErrBusy
		}
		nap()
	}
}

// Release lets epoch out. Call it once the backup holds its checkpoint. The
// packets are on their way when it returns, most often gone.
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
		if err := l.Path.Change(1-l.now, Pass); err != nil {
			return g.fail("release epoch %d: %s: %w", epoch, l.Name, err)
		}
	}
	g.sealed = false
	deadline := time.Now().Add(linger)
	for _, l := range g.lines {
		if err := l.prepare(deadline); err != nil {
			break // Seal will see
		}
	}
	return nil
}

// Drain lets out what came since the last Seal too, and returns when all has
// left and nothing more comes. It is for a domain that stays suspended because
// another host runs it on from its last checkpoint, which must be released: what
// its backends still pass on, the domain sent before. The gate goes on holding.
func (g *Gate) Drain(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return g.errorf("drain: %w", ErrClosed)
	case g.adopted:
		return g.errorf("drain: %w", ErrAdopted)
	case g.broken != nil:
		return g.errorf("drain: %w", g.broken)
	case g.sealed:
		return g.errorf("drain: %w: epoch %d", ErrHeld, g.epoch)
	case !g.holding:
		return nil
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(g.opts.timeout())
	}
	for since := time.Now(); time.Since(since) < quiet; nap() {
		for _, l := range g.lines {
			if err := l.prepare(deadline); err != nil {
				return g.errorf("drain: %s: %w", l.Name, err)
			}
			empty, err := l.Path.Empty(l.now)
			if err != nil {
				return g.errorf("drain: %s: %w", l.Name, err)
			}
			if empty {
				continue
			}
			since = time.Now()
			if since.After(deadline) {
				return g.errorf("drain: %s: %w", l.Name, ErrBusy)
			}
			// As if the domain had sent nothing since: an epoch without a number.
			if err := l.turn(); err != nil {
				return g.fail("drain: %s: %w", l.Name, err)
			}
			if err := l.Path.Change(1-l.now, Pass); err != nil {
				return g.fail("drain: %s: %w", l.Name, err)
			}
		}
	}
	return nil
}

// Abandon lets everything out, in order, and stops holding. Call it when
// protection is over and this host is known to own the domain. The gate stays
// in place; the next Seal starts holding again, and may count from 1 again.
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
	deadline := time.Now().Add(g.opts.timeout())
	for _, l := range g.lines {
		if err := l.open(deadline); err != nil {
			errs = errors.Join(errs, g.errorf("abandon: %s: %w", l.Name, err))
			continue
		}
		if g.host != nil {
			errs = errors.Join(errs, g.host.remember(l, false))
		}
	}
	if errs == nil {
		g.holding, g.sealed, g.adopted, g.broken = false, false, false, nil
		g.epoch = 0 // who protects anew counts anew
	}
	return errs
}

// open lets everything out, the older epoch first.
func (l *line) open(deadline time.Time) error {
	if !l.ready {
		if err := l.Path.Change(1-l.now, Pass); err != nil {
			return err
		}
		// If it does not run empty in time, order is what has to give.
		if err := l.wait(1-l.now, deadline); err != nil && !errors.Is(err, ErrBusy) {
			return err
		}
	}
	return l.Path.Change(l.now, Pass)
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
	if err := g.settle(quiet); err != nil {
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
	if err := g.settle(5 * time.Millisecond); err != nil {
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

// settle waits until the queues are empty and nothing new came for a while.
func (g *Gate) settle(still time.Duration) error {
	deadline := time.Now().Add(g.opts.timeout())
	for _, l := range g.lines {
		var since time.Time
		last := ^uint64(0)
		for {
			empty, passed := true, uint64(0)
			for q := range 2 {
				e, err := l.Path.Empty(q)
				if err != nil {
					return g.errorf("close: %s: %w", l.Name, err)
				}
				st, err := l.Path.State(q)
				if err != nil {
					return g.errorf("close: %s: %w", l.Name, err)
				}
				empty, passed = empty && e, passed+st.Passed
			}
			now := time.Now()
			if !empty || passed != last {
				since, last = now, passed
			}
			if now.Sub(since) >= still {
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
	Packets uint64 // waiting, of all vifs
	Bytes   uint64 // of Packets
	Drops   uint64 // packets of all vifs that found their queue full

	// Fullest is how full the fullest queue is, 0 to 1: before it is full there
	// has to be a checkpoint.
	Fullest float64
}

// VifStats say what waits behind one vif, in both queues.
type VifStats struct {
	Name    string
	Packets uint64
	Bytes   uint64
	Limit   uint64  // of the bytes in each queue
	Fullest float64 // of the two, 0 to 1
	Passed  uint64  // bytes that left
	Drops   uint64  // packets that found the queue full
	Gone    bool    // the vif vanished
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
		v := VifStats{Name: l.Name, Limit: uint64(g.opts.limit()), Gone: l.gone}
		for q := range 2 {
			st, err := l.Path.State(q)
			if err != nil {
				errs = errors.Join(errs, g.errorf("stats: %s: %w", l.Name, err))
				continue
			}
			v.Packets += st.Packets
			v.Bytes += st.Bytes
			v.Passed += st.Passed
			v.Drops += st.Drops
			v.Fullest = max(v.Fullest, float64(st.Bytes)/float64(v.Limit))
		}
		if g.host != nil && !l.gone {
			if err := g.host.redirected(l); err != nil {
				errs = errors.Join(errs, g.errorf("stats: %s: %w", l.Name, err))
			}
		}
		s.Vifs = append(s.Vifs, v)
		s.Packets += v.Packets
		s.Bytes += v.Bytes
		s.Drops += v.Drops
		s.Fullest = max(s.Fullest, v.Fullest)
	}
	return s, errs
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

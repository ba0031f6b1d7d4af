package netbuffer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Vif is one interface of a domain and its path through a gate.
type Vif struct {
	Name string // of the interface, vif3.0
	Path Path

	// Current is the queue of Path that gets packets at present, 0 or 1. An
	// earlier process may have left either.
	Current int
}

// A Gate holds the output of all vifs of a domain by epoch.
//
//	open --Seal--> holding, epoch sealed --Release--> holding --Seal--> ...
//	  ^                      |                          |
//	  +-----ReleaseAll-------+--------------------------+
//
// Its methods may be called from several goroutines.
type Gate struct {
	opts   Options
	host   host // nil behind New and Adopt
	events *signal

	mu      lock
	vifs    []*vif
	holding bool
	sealed  bool
	epoch   uint64 // newest that was sealed
	adopted bool   // found holding
	broken  error
	closed  bool
}

// A vif is a Vif behind a gate. Current moves with every Seal; the other queue
// has the epoch before: held, or released and leaving, or empty.
type vif struct {
	Vif
	nap   func()
	ready bool // the other queue is empty and holds
	gone  bool // the interface vanished; its queues may still hold packets
	moved bool // it is gone from here, and lives in another network namespace

	// Packets that the queues dropped, up to when the gate began to hold; that
	// never got into a queue; and those up to then.
	drops, lost, lostBefore uint64
}

// host is what a gate needs of the machine besides its paths.
type host interface {
	// added returns the interfaces of the domain that are not among vifs, and
	// marks the vifs whose interface is gone or moved.
	added(vifs []*vif) ([]string, error)
	// addVifs gives gates to the interfaces that have none.
	addVifs(vifs []*vif, holding bool) ([]*vif, error)
	// remember writes down, for the next process, whether the gate holds.
	remember(v *vif, holding bool) error
	// redirected checks that the vif's packets still go to the queues:
	// ErrBypassed, ErrForeign. A vif that vanished just now is no error. It also
	// reads how many packets never got into a queue.
	redirected(v *vif) error
	// alone checks that no other program takes the vif's packets before the
	// redirect, and that none misses them: ErrForeign. redirected looks at some
	// of these too; it is quick, for the domain's pause. alone may be some time
	// behind.
	alone(v *vif) error
	// restore redirects a vif again that is not redirected any more, and
	// reports whether it was one.
	restore(v *vif, holding bool) (bool, error)
	// bypass ends the redirect; the queues stay.
	bypass(v *vif) error
	// destroy drops the queues and all packets in them.
	destroy(v *vif) error
	close() error
}

// A lock is a mutex made of a channel. Methods nap while they hold the lock;
// testing/synctest advances a bubble's clock while other goroutines wait at a
// channel, but not while they wait at a sync.Mutex.
type lock chan struct{}

func (l lock) Lock()   { l <- struct{}{} }
func (l lock) Unlock() { <-l }

// New makes a gate that is open, of vifs whose current queue lets everything
// out at present. The other queue is empty and holds; or an earlier process
// left it open, and packets may still be leaving it.
//
// New and Adopt are for tests and simulations, which give vifs netbuffertest's
// Path; Open makes the gate of a domain. Such a gate knows the paths only, not
// the queues' kernel: Discard and Close end the gate and leave the paths to the
// caller.
func New(opts Options, vifs ...Vif) *Gate {
	g := newGate(opts, nil)
	for _, v := range vifs {
		g.vifs = append(g.vifs, newVif(v, opts))
	}
	return g
}

// Adopt makes a gate of vifs that an earlier process left holding, as Open does
// if it finds such a gate: if one vif held, all of the domain's count as
// holding. The packets belong to epochs that this process does not know, so
// Seal and Drain return ErrAdopted until ReleaseAll; Discard works.
func Adopt(opts Options, vifs ...Vif) *Gate {
	g := New(opts, vifs...)
	g.adopt()
	return g
}

func newGate(opts Options, h host) *Gate {
	return &Gate{opts: opts, host: h, events: newSignal(), mu: make(lock, 1)}
}

func newVif(v Vif, opts Options) *vif { return &vif{Vif: v, nap: opts.nap} }

// adopt notes that the gate was found holding.
func (g *Gate) adopt() { g.holding, g.adopted = true, true }

// Seal ends epoch on all vifs and starts the next. Call it while the domain is
// suspended: packets that the domain sends after it resumes belong to the next
// epoch. Packets that its backends pass on meanwhile are held with the next
// epoch: late, never early. The first Seal starts holding; earlier packets have
// left.
//
// There are two queues, one for the sealed epoch and one for the running epoch,
// so Seal returns ErrHeld until Release.
//
// ErrBypassed says that some other program removed the redirect of a vif: what
// the vif sent since was not held, and Restore redirects it again.
//
// After ErrHeld, ErrEpoch, ErrAdopted, ErrBusy, ErrNewVif, ErrMoved or ErrForeign
// nothing was sealed and Seal can be tried again. If a vif's switch fails, later
// calls return ErrBroken: some vifs may be sealed and others not; ErrBypassed too
// may be such a failure. All packets in the queues stay there.
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
	if err := g.each(host.redirected); err != nil {
		return g.errorf("seal epoch %d: %w", epoch, err)
	}
	deadline := time.Now().Add(g.opts.timeout())
	for _, v := range g.vifs {
		if err := v.prepare(deadline); err != nil {
			return g.errorf("seal epoch %d: %s: %w", epoch, v.Name, err)
		}
	}
	if !g.holding {
		if err := g.begin(); err != nil {
			return g.errorf("seal epoch %d: %w", epoch, err)
		}
	}
	first := g.events.next()
	for _, v := range g.vifs {
		if err := v.switchQueue(first); err != nil {
			return g.fail("seal epoch %d: %s: %w", epoch, v.Name, err)
		}
	}
	g.holding, g.sealed, g.epoch = true, true, epoch
	return nil
}

// begin prepares for the first seal.
func (g *Gate) begin() error {
	for _, v := range g.vifs {
		st, _, err := v.stats(g.opts.limit())
		if err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
		v.drops, v.lostBefore = st.Drops, v.lost
		// Write it down first: if a gate holds and its alias does not say so,
		// the next process lets everything out.
		if g.host != nil {
			if err := g.host.remember(v, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare makes the other queue ready to take an epoch. The epoch in it was
// released, and must have left before the queue can hold again.
func (v *vif) prepare(deadline time.Time) error {
	if v.ready {
		return nil
	}
	if err := v.wait(1-v.Current, deadline); err != nil {
		return err
	}
	if err := v.Path.Change(1-v.Current, Hold); err != nil {
		return err
	}
	v.ready = true
	return nil
}

// switchQueue sends arriving packets to the other queue from now on, and has
// first called for the first of them. It watches the queue beforehand: of a
// packet that came in between nobody would hear.
func (v *vif) switchQueue(first func()) error {
	v.watch(1-v.Current, first)
	if err := v.Path.Steer(1 - v.Current); err != nil {
		return err
	}
	v.Current, v.ready = 1-v.Current, false
	return nil
}

// wait waits until a queue is empty, and returns ErrBusy after deadline. It
// looks twice: the last packet counts as gone while it is being passed on.
func (v *vif) wait(queue int, deadline time.Time) error {
	for seen := 0; ; {
		empty, err := v.Path.Empty(queue)
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
		v.nap()
	}
}

// Release lets epoch out. Call it once the backup holds the epoch's checkpoint.
// When Release returns the packets are on their way, and have most often left.
// Any epoch but the sealed one is ErrEpoch.
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
	for _, v := range g.vifs {
		if err := v.Path.Change(1-v.Current, Pass); err != nil {
			return g.fail("release epoch %d: %s: %w", epoch, v.Name, err)
		}
	}
	g.sealed = false
	deadline := time.Now().Add(linger)
	for _, v := range g.vifs {
		if err := v.prepare(deadline); err != nil {
			break // Seal tries again, and returns the error
		}
	}
	g.look()
	return nil
}

// Drain also lets out the packets that came after the last Seal. It returns
// when all packets have left and no more come, or with ErrBusy at ctx's
// deadline, without one after Options.Timeout. The gate still holds afterwards.
//
// Drain is for a domain that stays suspended because another host continues it
// from its last checkpoint: packets that backends still pass on were sent
// before that checkpoint. The sealed epoch must be released, or Drain returns
// ErrHeld.
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
	// If the domain is resumed here after all, its first packet has an event.
	first := g.events.next()
	for _, v := range g.vifs {
		v.watch(v.Current, first)
	}
	for since := time.Now(); time.Since(since) < quiet; g.opts.nap() {
		for _, v := range g.vifs {
			if err := v.prepare(deadline); err != nil {
				return g.errorf("drain: %s: %w", v.Name, err)
			}
			empty, err := v.Path.Empty(v.Current)
			if err != nil {
				return g.errorf("drain: %s: %w", v.Name, err)
			}
			if empty {
				continue
			}
			since = time.Now()
			if since.After(deadline) {
				return g.errorf("drain: %s: %w", v.Name, ErrBusy)
			}
			// The domain has sent nothing since the seal, so these packets are
			// an epoch without a number.
			if err := v.switchQueue(first); err != nil {
				return g.fail("drain: %s: %w", v.Name, err)
			}
			if err := v.Path.Change(1-v.Current, Pass); err != nil {
				return g.fail("drain: %s: %w", v.Name, err)
			}
		}
	}
	return nil
}

// ReleaseAll lets everything out, in order, and stops holding. Call it when
// protection has ended and this host is known to own the domain. The gate stays
// in place; the next Seal starts holding again, and may count from 1 again.
// After an error ReleaseAll can be repeated.
func (g *Gate) ReleaseAll() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return g.errorf("release all: %w", ErrClosed)
	}
	return g.releaseAll()
}

func (g *Gate) releaseAll() error {
	var errs error
	deadline := time.Now().Add(g.opts.timeout())
	for _, v := range g.vifs {
		if err := v.open(deadline); err != nil {
			errs = errors.Join(errs, g.errorf("release all: %s: %w", v.Name, err))
			continue
		}
		if g.host != nil {
			errs = errors.Join(errs, g.host.remember(v, false))
		}
	}
	if errs == nil {
		g.holding, g.sealed, g.adopted, g.broken = false, false, false, nil
		g.epoch = 0 // the next protection counts from 1
		g.events.end()
	}
	return errs
}

// open lets everything out, the older epoch first.
func (v *vif) open(deadline time.Time) error {
	if !v.ready {
		if err := v.Path.Change(1-v.Current, Pass); err != nil {
			return err
		}
		// A queue that does not run empty in time costs the order, not packets.
		if err := v.wait(1-v.Current, deadline); err != nil && !errors.Is(err, ErrBusy) {
			return err
		}
	}
	return v.Path.Change(v.Current, Pass)
}

// Close lets everything out, removes the redirects and then the gate. With
// Options.Quiesce no packet is lost and none overtakes another. After ErrBusy
// the gate still exists and lets everything through, and Close can be repeated.
// Close of a closed gate does nothing.
func (g *Gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	if err := g.releaseAll(); err != nil {
		return err
	}
	if g.host == nil {
		g.closed = true
		return nil
	}
	if err := g.bypass(); err != nil {
		return err
	}
	// A packet that was in the classifier when its filter was removed may still
	// arrive.
	if err := g.settle(quiet); err != nil {
		return err
	}
	var errs error
	for _, v := range g.vifs {
		if err := g.host.destroy(v); err != nil {
			errs = errors.Join(errs, g.errorf("close: %s: %w", v.Name, err))
		}
	}
	if errs == nil {
		g.closed = true
		errs = g.host.close()
	}
	return errs
}

// bypass removes the redirects while the domain is quiet.
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
	for _, v := range g.vifs {
		if err := g.host.bypass(v); err != nil {
			errs = errors.Join(errs, g.errorf("close: %s: %w", v.Name, err))
		}
	}
	return errs
}

// settle waits until the queues have been empty, and passed nothing, for the
// time still.
func (g *Gate) settle(still time.Duration) error {
	deadline := time.Now().Add(g.opts.timeout())
	for _, v := range g.vifs {
		var since time.Time
		last := ^uint64(0)
		for {
			empty, passed := true, uint64(0)
			for q := range 2 {
				e, err := v.Path.Empty(q)
				if err != nil {
					return g.errorf("close: %s: %w", v.Name, err)
				}
				st, err := v.Path.State(q)
				if err != nil {
					return g.errorf("close: %s: %w", v.Name, err)
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
				return g.errorf("close: %s: %w", v.Name, ErrBusy)
			}
			v.nap()
		}
	}
	return nil
}

// Discard drops all packets in the gate and removes the gate. It is for the
// loser of an arbitration, after the domain was destroyed. If a vif still
// exists, its output is dropped from now on. Discard of a closed gate does
// nothing.
func (g *Gate) Discard() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	var errs error
	for _, v := range g.vifs {
		if g.host == nil {
			continue
		}
		if err := g.host.destroy(v); err != nil {
			errs = errors.Join(errs, g.errorf("discard: %s: %w", v.Name, err))
		}
	}
	if errs == nil {
		g.closed = true
		g.events.end()
		if g.host != nil {
			errs = g.host.close()
		}
	}
	return errs
}

func (g *Gate) errorf(format string, args ...any) error {
	return fmt.Errorf("netbuffer: "+format, args...)
}

// fail makes the gate broken, until ReleaseAll.
func (g *Gate) fail(format string, args ...any) error {
	err := g.errorf(format, args...)
	g.broken = fmt.Errorf("%w after: %w", ErrBroken, err)
	return err
}

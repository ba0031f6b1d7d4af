package primary

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"xlft/xlft"
	"xlft/xlft/wire"

	"go.uber.org/zap"
)

// Settings are how a domain is protected.
type Settings struct {
	EpochMax       time.Duration // longest epoch
	DirtyMax       uint64        // pages written that end an epoch early; 0: no limit
	FailureTimeout time.Duration // silence after which the other side is suspected
	AckTimeout     time.Duration // an ack that takes longer counts as a loss
	SuspendTimeout time.Duration // how long the domain may take to suspend
	RetryDelay     time.Duration // before the backup, or the arbiter, is called again
	Compress       bool          // what is sent, if the backup can read it
	SpoolLimit     int64         // bytes of a checkpoint held in memory here
}

// A Session protects one domain from this host, the primary.
type Session struct {
	Domain   string
	Software string // name and version, for the peer's log
	Offer    wire.Offer
	Settings Settings
	// Describe, if set, makes the offer anew for each call to the backup:
	// devices may have come or gone.
	Describe func() (wire.Offer, error)

	Guest   xlft.Guest
	Output  xlft.Output
	Disks   Disks // nil if the domain has none
	Arbiter xlft.Arbiter
	Dial    wire.Dialer
	Peer    string // the backup's name
	Store   xlft.Store
	Log     *zap.Logger

	// Instance tells this run of the domain from any other: a protector that
	// finds its predecessor's record asks who owns the domain only if it is
	// about the same run.
	Instance string
	// Events, if set, asks for a checkpoint each time it is ready to receive
	// from: the domain did something that the outside waits for.
	Events <-chan struct{}

	requests chan Event
	once     sync.Once

	// Below: the loop's alone.
	m     Machine
	rec   xlft.Record
	exit  *Exit
	link  *link
	save  *save
	retry *time.Timer
	limit *limit // of what is waited for; nil: of nothing
	ended bool   // the domain was destroyed here

	events chan Event
	wg     sync.WaitGroup

	status statusBox
}

func (s *Session) init() {
	s.once.Do(func() {
		s.requests = make(chan Event)
		s.events = make(chan Event)
		s.status.init()
	})
}

// Run protects the domain until protection ends. It returns nil if an operator
// ended it, and otherwise why. When it returns, the domain runs here and its
// output flows, or it is gone (ErrBackupRuns, xlft.ErrGuestEnded, a switch-over).
//
// Cancelling ctx is an operator's stop: the backup is told before Run returns.
func (s *Session) Run(ctx context.Context) error {
	s.init()
	rec, err := s.Store.Load(s.Domain)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Domain, err)
	}
	// An earlier protector died while the backup could have taken over: the
	// output stays as it was left, held, until it is known who owns the domain.
	held := rec.Instance == s.Instance && rec.Role == xlft.HostPrimary && rec.Exposed
	// It knew that the backup runs the domain, and did not come to destroy the
	// copy here, or could not.
	yielded := rec.Instance == s.Instance && rec.Role == xlft.HostYielded
	s.rec = rec
	if !yielded {
		if !held {
			s.rec.Generation++
			s.rec.Exposed, s.rec.Handed = false, false
		}
		s.rec.Role, s.rec.Peer, s.rec.Instance = xlft.HostPrimary, s.Peer, s.Instance
		if err := s.Store.Save(s.Domain, s.rec); err != nil {
			return fmt.Errorf("%s: %w", s.Domain, err)
		}
	}

	// Work that goes on after an operator's stop has a context of its own.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer s.wg.Wait()
	defer cancel()
	s.spawn(func() { s.watchGuest(work) })
	s.spawn(func() { s.watchTriggers(work) })

	s.step(work, Start{Held: held, Handed: rec.Handed, Yielded: yielded})
	stop := ctx.Done()
	for s.exit == nil {
		select {
		case ev := <-s.events:
			s.step(work, ev)
		case ev := <-s.requests:
			s.step(work, ev)
		case <-timeC(s.retry):
			s.retry = nil
			s.step(work, Retry{})
		case <-s.limit.due():
			if l := s.limit; !l.extend() {
				s.limit = nil
				s.step(work, BackupLost{l.err})
			}
		case <-stop:
			stop = nil
			s.step(work, StopAsked{})
		}
	}
	s.endLink()
	s.status.set(func(st *Status) { st.State = Ended.String() })
	return s.exit.Err
}

func timeC(t *time.Timer) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}

// Stop asks for the end of protection; Run returns when it is reached.
func (s *Session) Stop(ctx context.Context) error { return s.request(ctx, StopAsked{}) }

// Failover asks for a planned switch-over; Run returns when it is done. It is
// refused unless the domain is protected.
func (s *Session) Failover(ctx context.Context) error {
	if st := s.Status(); st.State != Protected.String() {
		return fmt.Errorf("%s is not protected now (%s)", s.Domain, st.State)
	}
	return s.request(ctx, FailoverAsked{})
}

// Alive returns once the session has taken it in: a watchdog's question.
func (s *Session) Alive(ctx context.Context) error { return s.request(ctx, nil) }

func (s *Session) request(ctx context.Context, ev Event) error {
	s.init()
	select {
	case s.requests <- ev:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Session) spawn(f func()) { s.wg.Go(f) }

// post hands an event to the loop.
func (s *Session) post(ctx context.Context, ev Event) {
	select {
	case s.events <- ev:
	case <-ctx.Done():
	}
}

// linked marks an event of a link, so that one that comes late, from a link
// that is over, is told apart.
type linked struct {
	Event
	from *link
}

// saved does the same for a save.
type saved struct {
	Event
	from *save
}

// opened is the link that Connect made.
type opened struct {
	Event
	link *link
}

func (s *Session) step(ctx context.Context, ev Event) {
	switch e := ev.(type) {
	case linked:
		if e.from != s.link {
			return
		}
		ev = e.Event
	case saved:
		if e.from != s.save {
			return
		}
		ev = e.Event
	case opened:
		if s.m.State() != Connecting {
			e.link.close() // stopped meanwhile
			return
		}
		s.link = e.link
		ev = e.Event
	}
	before := s.m.State()
	acts := s.m.Step(ev)
	s.note(before, ev)
	for _, a := range acts {
		s.do(ctx, a)
	}
	s.status.stepped(s.m.State(), s.m.Acked(), s.rec.Generation)
}

// note logs what an operator cares about.
func (s *Session) note(before State, ev Event) {
	now := s.m.State()
	var why error
	switch ev := ev.(type) {
	case BackupLost:
		why = ev.Err
	case ReplicaDropped:
		if before != Dropping { // there it is what was asked for, and why is known
			why = ev.Err
		}
	case ConnectFailed:
		why = ev.Err
	case SaveEnded:
		why = ev.Err
	case DisksLost:
		why = ev.Err
	case NotDrained:
		why = ev.Err
	case GuestEnded:
		why = errors.New(ev.Why)
	}
	if why != nil {
		s.status.set(func(v *Status) { v.LastError = why.Error() })
	}
	if now == before {
		if ev, ok := ev.(ConnectFailed); ok {
			s.Log.Warn("backup can't take the domain", zap.Error(ev.Err))
		}
		return
	}
	f := []zap.Field{zap.Stringer("from", before), zap.Stringer("to", now), zap.Uint64("epoch", s.m.Acked())}
	if why != nil {
		f = append(f, zap.NamedError("why", why))
	}
	switch now {
	case Doubt, Fenced:
		s.Log.Error("protection lost, output held", f...)
	case Detaching:
		s.Log.Warn("protection lost, this host is the only runner", f...)
	default:
		s.Log.Info("state changed", f...)
	}
	s.status.set(func(v *Status) { v.Since = time.Now() })
}

// do carries out one action.
func (s *Session) do(ctx context.Context, a Action) {
	switch a := a.(type) {
	case Connect:
		gen := s.rec.Generation
		s.spawn(func() { s.connect(ctx, gen) })
	case AskOwner:
		s.spawn(func() { s.askOwner(ctx) })
	case AskArbiter:
		gen := s.rec.Generation
		s.spawn(func() { s.askArbiter(ctx, gen, a.Handed) })
	case SyncDisks:
		s.beginSession(ctx)
	case BeginSave:
		// From the first byte on, a successor of this process must ask before
		// it lets anything out.
		s.rec.Exposed = true
		if err := s.Store.Save(s.Domain, s.rec); err != nil {
			s.save = nil
			s.postLater(ctx, saved{SaveEnded{err}, nil})
			return
		}
		s.beginSave(ctx)
		s.within(s.Settings.SuspendTimeout+s.Settings.AckTimeout, "the first checkpoint made no progress", s.save.spool)
	case Checkpoint:
		s.save.next <- a
		s.within(s.Settings.SuspendTimeout+s.Settings.AckTimeout, "the capture of a checkpoint made no progress", s.save.spool)
	case EndSave:
		if s.save != nil { // it did not begin: its end is on its way
			s.save.cancel()
		}
	case Send:
		s.save.spool.open(a.Epoch)
		var progress *spool
		if a.Epoch == 1 {
			progress = s.save.spool // much of it may still wait here
		}
		s.within(s.Settings.AckTimeout, "no ack", progress)
	case Release:
		if s.m.State() != Dropping { // there it is the backup's word that is waited for
			s.limit = s.limit.stop()
		}
		s.status.acked(a.Epoch, s.save.spool)
		if err := s.Output.Release(a.Epoch); err != nil {
			s.fail(ctx, fmt.Errorf("release epoch %d: %w", a.Epoch, err))
		}
	case HandOver:
		// What was released must have left before the backup, or the end of
		// this domain, can get in its way.
		drain, cancel := context.WithTimeout(ctx, s.Settings.FailureTimeout)
		err := s.Output.Drain(drain)
		cancel()
		if err != nil {
			s.postLater(ctx, NotDrained{fmt.Errorf("what was released has not left: %w", err)})
			return
		}
		// A successor must not have the arbiter take the domain from a backup
		// that runs it by this host's word.
		s.rec.Handed = true
		if err := s.Store.Save(s.Domain, s.rec); err != nil {
			s.rec.Handed = false
			s.postLater(ctx, NotDrained{fmt.Errorf("record the switch-over: %w", err)})
			return
		}
		if err := s.link.write(wire.TypeHandOver, a.Epoch); err != nil {
			s.postLater(ctx, linked{BackupLost{err}, s.link})
		}
	case AskDrop:
		s.within(s.Settings.AckTimeout, "the backup did not drop its replica", nil)
		if s.link == nil {
			s.postLater(ctx, BackupLost{wire.ErrHungUp})
		} else if err := s.link.write(wire.TypeDrop, 0); err != nil {
			s.postLater(ctx, linked{BackupLost{err}, s.link})
		}
	case Hold:
		if err := s.Guest.Pause(); err != nil {
			s.Log.Error("hold the domain", zap.Error(err))
		}
	case Unhold:
		if err := s.Guest.Unpause(); err != nil {
			s.Log.Error("let the domain run", zap.Error(err))
		}
	case Abandon:
		if err := s.Output.Abandon(); err != nil {
			s.Log.Error("let the held output out", zap.Error(err))
		}
		s.resumeLeftover()
	case NextGeneration:
		s.rec.Generation++
		s.rec.Exposed, s.rec.Handed = false, false
		if err := s.Store.Save(s.Domain, s.rec); err != nil {
			s.Log.Error("record the change of owner", zap.Error(err))
		}
	case Hangup:
		if a.Drop && s.link != nil {
			if err := s.link.write(wire.TypeDrop, 0); err != nil {
				s.Log.Info("the backup can't be told to drop its replica", zap.Error(err))
			}
		}
		s.endLink()
	case RetryLater:
		s.retry = time.NewTimer(s.Settings.RetryDelay)
	case Destroy:
		s.destroy()
	case CloseGate:
		if err := s.Output.Close(); err != nil {
			s.Log.Error("take down the network gate", zap.Error(err))
		}
	case Exit:
		if s.save != nil {
			s.save.cancel()
		}
		s.exit = &a
	}
}

// A limit bounds a wait: a backup that is heard, or a capture that hangs, is no
// protection. A nil one is none.
type limit struct {
	timer    *time.Timer
	wait     time.Duration
	err      error
	progress *spool // each of its moves begins the wait anew; nil: nothing does
}

// within sets the limit of what is waited for from now on, instead of the one
// before.
func (s *Session) within(wait time.Duration, what string, progress *spool) {
	s.limit.stop()
	s.limit = &limit{time.NewTimer(wait), wait, fmt.Errorf("%s within %v", what, wait), progress}
}

func (l *limit) due() <-chan time.Time {
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

func (l *limit) stop() *limit {
	if l != nil {
		l.timer.Stop()
	}
	return nil
}

// postLater posts from the loop itself.
func (s *Session) postLater(ctx context.Context, ev Event) {
	s.spawn(func() { s.post(ctx, ev) })
}

// fail ends the save: something went wrong that makes protection untrue.
func (s *Session) fail(ctx context.Context, err error) {
	s.Log.Error("protection failed", zap.Error(err))
	if s.save != nil {
		s.save.fail(err)
	}
}

func (s *Session) endLink() {
	s.limit = s.limit.stop()
	if s.link != nil {
		if s.Disks != nil {
			s.Disks.End()
		}
		s.link.close()
		s.link = nil
	}
}

func (s *Session) destroy() {
	s.ended = true
	if s.save != nil {
		s.save.gone.Store(true)
	}
	s.rec.Role, s.rec.Exposed, s.rec.Handed = xlft.HostYielded, false, false
	if err := s.Store.Save(s.Domain, s.rec); err != nil {
		s.Log.Error("record that the domain was given up", zap.Error(err))
	}
	if err := s.Guest.Destroy(); err != nil {
		// Without the gate the copy could still speak: the gate stays.
		s.Log.Error("destroy the local copy; its output stays held", zap.Error(err))
		return
	}
	if err := s.Output.Discard(); err != nil {
		s.Log.Error("drop the held output", zap.Error(err))
	}
}

// resumeLeftover lets a domain run that an earlier, dead protector left
// suspended.
func (s *Session) resumeLeftover() {
	if s.save != nil {
		return
	}
	if st, _, err := s.Guest.State(); err == nil && st == xlft.GuestSuspended {
		if err := s.Guest.Resume(); err != nil {
			s.Log.Error("resume the domain", zap.Error(err))
		}
	}
}

func (s *Session) offer(generation uint64) (o wire.Offer, err error) {
	o = s.Offer
	if s.Describe != nil {
		if o, err = s.Describe(); err != nil {
			return o, err
		}
	}
	o.Domain, o.Generation = s.Domain, generation
	o.FailureTimeout, o.MaxEpoch = s.Settings.FailureTimeout, uint64(s.Settings.SpoolLimit)
	return o, nil
}

func (s *Session) connect(ctx context.Context, generation uint64) {
	var l *link
	o, err := s.offer(generation)
	if err == nil {
		l, err = openLink(ctx, s.Dial, s.Software, o, s.Settings.Compress)
	}
	if err != nil {
		var r *wire.Refusal
		if errors.As(err, &r) && r.Code == wire.CodeRunning {
			err = fmt.Errorf("%w: %w", ErrBothRun, err)
		}
		s.post(ctx, ConnectFailed{err})
		return
	}
	select {
	case s.events <- opened{Connected{}, l}:
	case <-ctx.Done():
		l.close()
	}
}

func (s *Session) askOwner(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, wire.OwnerTimeout)
	defer cancel()
	var r wire.OwnerResult
	err := wire.Ask(ask, s.Dial, s.Software, wire.TypeOwner,
		wire.OwnerQuery{Domain: s.Domain, Generation: s.rec.Generation, Reclaim: true}, wire.TypeOwnerResult, &r)
	ev := Owner{}
	switch {
	case err != nil:
		s.Log.Warn("the backup can't say who owns the domain", zap.Error(err))
		ev.Unreachable = true
	case r.Role == wire.RoleRunning && r.Generation >= s.rec.Generation:
		ev.Role = RoleRunning
	case r.Role == wire.RoleReplica:
		ev.Unreachable = true // it is asking the arbiter itself
	}
	s.post(ctx, ev)
}

func (s *Session) askArbiter(ctx context.Context, gen uint64, handed bool) {
	v := xlft.Lost
	won, err := s.Arbiter.Claim(ctx, xlft.ArbiterQuery{Domain: s.Domain, Generation: gen, Asker: xlft.AskerPrimary, Peer: s.Peer, Handed: handed})
	switch {
	case err != nil:
		s.Log.Error("arbiter can't be reached", zap.Stringer("arbiter", s.Arbiter), zap.Error(err))
		v = xlft.Unreachable
	case won:
		v = xlft.Won
	}
	s.Log.Warn("arbiter answered", zap.Stringer("arbiter", s.Arbiter), zap.Uint64("generation", gen), zap.Stringer("verdict", v))
	s.post(ctx, Solo{v})
}

// watchGuest notices the domain's own end.
func (s *Session) watchGuest(ctx context.Context) {
	t := time.NewTicker(guestLook)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		st, why, err := s.Guest.State()
		if err != nil {
			s.Log.Warn("look at the domain", zap.Error(err))
			continue
		}
		if st == xlft.GuestOver {
			s.post(ctx, GuestEnded{why})
			return
		}
	}
}

// guestLook is how often the domain's own end is looked for.
const guestLook = time.Second

// lookAtMost is the longest time between two looks at counters.
const lookAtMost = 25 * time.Millisecond

// watchTriggers asks for checkpoints. It looks at counters far more often than
// it asks; the machine takes only what fits.
func (s *Session) watchTriggers(ctx context.Context) {
	// However long an epoch may be, a gate fills up in its own time.
	look := time.NewTicker(min(max(s.Settings.EpochMax/8, 2*time.Millisecond), lookAtMost))
	defer look.Stop()
	for {
		why := Why("")
		select {
		case <-ctx.Done():
			return
		case <-s.Events:
			why = WhyOutput
		case <-look.C:
		}
		begun, ok := s.status.openEpoch()
		if !ok {
			continue
		}
		switch {
		case why != "":
		case time.Since(begun) >= s.Settings.EpochMax:
			why = WhyInterval
		case s.backlogged():
			why = WhyBacklog
		case s.dirty():
			why = WhyDirty
		default:
			continue
		}
		s.post(ctx, Trigger{why})
	}
}

// backlogged: the gate nears its limit, and would drop.
func (s *Session) backlogged() bool {
	held, limit, err := s.Output.Held()
	return err == nil && limit > 0 && held > limit/2
}

func (s *Session) dirty() bool {
	if s.Settings.DirtyMax == 0 {
		return false
	}
	n, err := s.Guest.DirtyPages()
	return err == nil && n >= s.Settings.DirtyMax
}

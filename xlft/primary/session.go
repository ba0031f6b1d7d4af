package primary

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// Settings are how a domain is protected.
type Settings struct {
	Pacing         xlft.Pacing   // until Pace changes it
	FailureTimeout time.Duration // silence after which the other side is suspected
	AckTimeout     time.Duration // an ack that takes longer counts as a loss
	SuspendTimeout time.Duration // how long the domain may take to suspend
	RetryDelay     time.Duration // before the backup, or the arbiter, is called again
	RetryMax       time.Duration // to which that time grows while it fails; 0: 12 times RetryDelay
	MoveAfter      time.Duration // a lost backup is waited for so long, then the session ends; 0: for ever
	Compress       bool          // compress checkpoints, if the backup can read that
	SpoolLimit     int64         // bytes of a checkpoint held in memory here
	PageCache      int64         // bytes of pages kept, of which only changes are sent; 0: none
}

// A Session protects one domain from this host, the primary.
type Session struct {
	Domain   string
	Software string // name and version, for the peer's log
	Offer    wire.Offer
	Settings Settings
	// Describe, if set, makes the offer again for each call to the backup:
	// devices may have come or gone.
	Describe func() (wire.Offer, error)
	// Same, if set, says what has come to differ from the offer that the backup
	// accepted: devices, say, that somebody attached. nil: nothing.
	Same func(accepted wire.Offer) error

	Guest   xlft.Guest
	Gates   xlft.Gates
	Arbiter xlft.Arbiter
	Dial    wire.Dialer
	Peer    string // the backup's name
	// DialPeer returns the way to another peer: the backup of an earlier protector
	// may not be Peer. nil: it is.
	DialPeer func(peer string) wire.Dialer
	// Peers are the hosts that may run the domain if nothing is recorded of it; none:
	// Peer.
	Peers []string
	Store xlft.Store
	Log   *zap.Logger
	// Health, if set, says whether the arbiter could decide now, for Status.
	Health func() xlft.Health
	// Hung, if set, is called if something that the session waits for never
	// returns: a capture inside the hypervisor's library, say. The process has to
	// end; its successor finds what is left.
	Hung func(error)
	// FoundHolding: the domain's gate was found holding, as an earlier protector
	// left it.
	FoundHolding bool

	// Instance tells this run of the domain from any other: a protector that
	// finds its predecessor's record asks who owns the domain only if the
	// record is about the same run.
	Instance string
	// Proven: the domain was protected before it was started again, and nobody ended
	// that. Attempts to protect it go on.
	Proven bool
	// Events is ready to receive from once the domain has sent something since the
	// last seal, which empties it. nil: there is nothing that it could send by.
	Events <-chan struct{}
	// Watching, if set, says what finds that out, for Status.
	Watching func() string
	// Polled, if set, says whether Events come only from looks at the gate.
	Polled func() bool

	requests chan request
	done     chan struct{} // closed at the end of Run
	once     sync.Once
	stopped  atomic.Bool // by an operator

	// The loop's alone; exit may be read once done is closed.
	m         Machine
	began     bool // the record is this session's
	ownership xlft.Ownership
	decider   decider // who may run the domain besides this host
	said      xlft.Said
	failures  int   // in a row
	stuck     error // what of the end of a protection could not be done: output is held, or the domain does not run
	panicked  bool
	withdrawn chan struct{} // of the claim under way: closed when it is not wanted any more
	waits     time.Time     // since when the domain waits for a decision
	caughtUp  bool          // with the backup's generation, in this try to connect
	protected time.Time     // when the domain last became protected
	lacking   time.Time     // since when no backup could take over; zero: one can
	exit      *Exit
	link      *link
	save      *save
	retry     <-chan time.Time
	limit     *limit       // of the present wait; nil if there is none
	failovers []chan error // operators who wait for a switch-over
	trigger   *trigger
	why       Why // of the newest checkpoint

	events chan Event
	wg     sync.WaitGroup

	status statusBox
}

func (s *Session) init() {
	s.once.Do(func() {
		s.requests, s.events, s.done = make(chan request), make(chan Event), make(chan struct{})
		s.trigger = newTrigger(s.Guest, s.Gates, s.Events, s.Settings.SpoolLimit, s.Settings.Pacing)
		s.trigger.polled = s.Polled
		s.status.init()
	})
}

// Run protects the domain until protection ends. It returns nil if an operator
// ended it, and otherwise why it ended. When Run returns, the domain runs here
// and its output flows, or the domain is gone (see Outcome).
//
// Cancelling ctx is an operator's stop: the backup is told before Run returns.
func (s *Session) Run(ctx context.Context) (err error) {
	s.init()
	defer close(s.done)
	defer func() {
		switch {
		case s.exit != nil:
		case err != nil:
			s.exit = &Exit{"", err} // before the first step: nothing is decided
		default:
			s.exit = &Exit{Failed, nil}
		}
	}()
	found, err := s.Store.Load(s.Domain)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Domain, err)
	}
	same := found.Instance == s.Instance
	s.decider = decider{s.Peer, s.Dial, 0}
	// An earlier protector died while the backup could have taken over: the
	// output stays held, as it was left, until it is known who owns the domain.
	held := same && found.Role == xlft.HostPrimary && found.Exposed
	// The earlier protector knew that the backup runs the domain, and died or
	// failed before it had destroyed the copy here.
	yielded := same && found.Role == xlft.HostYielded
	s.ownership = found
	s.ownership.Paused, s.ownership.Proven = same && found.Paused, same && found.Proven || s.Proven
	s.decider.generation = found.Generation
	// That the gate holds is evidence of an earlier protector too, if its record is
	// lost.
	lost := s.FoundHolding && !held && !yielded && (!same || found.Role != xlft.HostPrimary)
	if (found.Role == xlft.HostBackup || found.Role == xlft.HostOwner) && xlft.SameUUID(found.UUID, s.Offer.UUID) {
		// The domain runs here: it was taken over, whether or not that could be recorded.
		s.ownership.Took = max(found.Took, found.Generation)
	}
	switch {
	case yielded:
	case lost:
		// What may be recorded from here on is of this run of the domain, which
		// nothing else is known of.
		s.ownership.Role, s.ownership.Exposed, s.ownership.Handed, s.ownership.Pending = "", false, false, false
		s.ownership.Instance = s.Instance
		s.Log.Warn("the gate was found holding, and no record says why: the backup is asked who owns the domain")
		s.decider.generation = 0
	case held:
		// Its backup may run the domain, whoever is to be the backup from now on.
		// The record stays as it is.
		if found.Peer != s.Peer && s.DialPeer != nil {
			s.decider = decider{found.Peer, s.DialPeer(found.Peer), found.Generation}
		}
	default:
		anew := same && found.Anew || !same && found.Role != xlft.HostNone && found.Role != xlft.HostOwner
		if anew {
			// Whoever started it here may not know that it runs on already elsewhere.
			err = s.runsElsewhere(ctx)
		}
		s.ownership.Anew = anew
		s.ownership = s.fresh(found.Generation + 1)
		s.decider.generation = s.ownership.Generation
		if err == nil {
			err = s.Store.Save(s.Domain, s.ownership)
		}
		if err != nil {
			if same && found.Role == xlft.HostPrimary {
				// It is decided that the domain runs here: it does not wait for a record.
				s.letGo(once)
			}
			return fmt.Errorf("%s: %w", s.Domain, err)
		}
	}

	s.began = true

	// Work that goes on after an operator's stop has a context of its own.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer s.finish()
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			// Nothing waits for anything any more: the process ends at once, its
			// connections break, and its successor decides.
			s.Log.Error("panic", zap.Any("value", r), zap.Stack("stack"))
			s.panicked = true
			panic(r)
		}
	}()
	s.spawn(func() { s.watchGuest(work) })
	s.spawn(func() {
		s.trigger.run(work, func(why Why) { s.post(work, Trigger{why}) }, func(err error) { s.post(work, GateFailed{err}) })
	})

	s.step(work, Paced{Strict: s.Settings.Pacing.Mode == xlft.ModeStrict})
	s.step(work, Start{Held: held || lost, Handed: same && found.Handed, Yielded: yielded, Paused: s.ownership.Paused, Proven: s.ownership.Proven})
	stop := ctx.Done()
	for s.exit == nil {
		select {
		case ev := <-s.events:
			s.step(work, ev)
		case r := <-s.requests:
			s.serve(work, r)
		case <-s.retry:
			s.retry = nil
			s.step(work, Retry{})
		case <-s.limit.due():
			if l := s.limit; !l.extend() {
				s.limit = nil
				switch {
				case s.m.State() == Detaching:
					s.hung(l.err)
				case s.m.Idle():
					s.hung(l.err) // what asks for checkpoints hangs
					s.step(work, GateFailed{l.err})
				default:
					s.step(work, BackupLost{l.err})
				}
			}
		case <-stop:
			stop = nil
			s.step(work, StopAsked{})
		}
	}
	s.endLink()
	s.status.set(func(st *Status) { st.State, st.Protected = Ended, false })
	return s.exit.Err
}

// finish waits for what the session began.
func (s *Session) finish() {
	if s.panicked {
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.wg.Wait()
	}()
	t := wire.NewAwakeTimer(s.Settings.SuspendTimeout + s.Settings.AckTimeout)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		s.hung(errors.New("a part of the session does not end"))
		<-ended
	}
}

func (s *Session) hung(err error) {
	s.Log.Error("this process has to end: its successor finds what is left", zap.Error(err))
	if s.Hung != nil {
		s.Hung(err)
	}
}

func (s *Session) spawn(f func()) { s.wg.Go(f) }

// post gives the loop an event.
func (s *Session) post(ctx context.Context, ev Event) {
	select {
	case s.events <- ev:
	case <-ctx.Done():
	}
}

// saved marks an event of a save, for the same reason.
type saved struct {
	Event
	from *save
}

func (s *Session) step(ctx context.Context, ev Event) {
	switch e := ev.(type) {
	case decided:
		if e.generation != s.decider.generation {
			return
		}
		// What the domain waits for now is of more use than what it was lost by.
		if st := s.m.State(); e.why != nil && (st == Recovering || st == Arbitrating) {
			s.status.set(func(v *Status) { v.LastError = e.why.Error() })
		}
		ev = e.Event
	case behind:
		if ev = e.Event; s.m.State() == Connecting && !s.caughtUp {
			s.caughtUp = true // once for each try
			s.ownership = s.fresh(e.generation + 1)
			s.decider.generation = s.ownership.Generation
			if err := s.Store.Save(s.Domain, s.ownership); err != nil {
				ev = ConnectFailed{err}
				break
			}
			s.do(ctx, Connect{})
			return
		}
	case linked:
		if e.from != s.link {
			return
		}
		if ev = e.Event; isAck(ev) {
			defer func() { e.from.acted <- struct{}{} }()
		}
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
		s.status.set(func(st *Status) { st.PeerAddress = e.link.control.Address() })
		ev = e.Event
	}
	before := s.m.State()
	ev = s.movesOn(ev)
	acts := s.m.Step(ev)
	if now := s.m.State(); before == Arbitrating && now != Arbitrating {
		s.withdraw()
	}
	s.report(before, ev)
	// An action may take long: a record that hangs, a call that is tried again.
	if !s.coverable(s.m.State()) {
		s.status.set(func(v *Status) { v.Protected = false })
	}
	for _, a := range acts {
		s.do(ctx, a)
	}
	now := s.m.State()
	if s.coverable(now) {
		s.lacking = time.Time{}
	} else if s.lacking.IsZero() {
		s.lacking = time.Now()
	}
	if undecided(now) && !undecided(before) {
		s.waits = time.Now()
	}
	switch now {
	case Protected, Syncing:
	case Recovering, Arbitrating, Ending, Detaching:
		s.trigger.watch()
	default: // the output flows, or the domain stands still
		s.trigger.close()
	}
	s.status.set(func(v *Status) {
		v.State, v.Epoch, v.Generation, v.Holding = now, s.m.Acked(), s.ownership.Generation, s.m.Holding()
		v.Protected, v.Lacking = s.coverable(now), s.lacking
	})
	s.answerFailovers()
}

// movesOn makes the next failure, or attempt, to connect the last one when the backup was
// waited for long enough. While the domain does not run, or its output is held, it is not:
// each attempt to connect tries to undo that, and nobody else would.
func (s *Session) movesOn(ev Event) Event {
	if s.stuck != nil || s.Settings.MoveAfter == 0 || s.m.State() != Connecting || !s.m.proven || s.lacking.IsZero() {
		return ev
	}
	if e, ok := ev.(ConnectFailed); ok {
		if r := (*wire.Refusal)(nil); errors.As(e.Err, &r) && r.Code == wire.CodeDrained {
			return MovesOn(e) // it is not to be a backup
		}
	}
	if time.Since(s.lacking) < s.Settings.MoveAfter {
		return ev
	}
	why := s.Status().LastError
	switch e := ev.(type) {
	case ConnectFailed:
		why = e.Err.Error()
	case Retry:
	default:
		return ev
	}
	return MovesOn{fmt.Errorf("%s is not a backup again after %v: %s", s.Peer, s.Settings.MoveAfter, why)}
}

func isAck(ev Event) bool {
	_, ok := ev.(Acked)
	return ok
}

// coverable reports whether the backup can take over in a state. In a switch-over
// nobody can any more once the backup was told to run the domain.
func (s *Session) coverable(st State) bool {
	return st == Protected || st == HandingOver && !s.ownership.Handed
}

// report logs what an operator cares about.
func (s *Session) report(before State, ev Event) {
	now := s.m.State()
	var why error
	switch ev := ev.(type) {
	case BackupLost:
		why = ev.Err
	case ReplicaDestroyed:
		if before != Ending { // there it was asked for, and the reason is known
			why = ev.Err
		}
	case ConnectFailed:
		why = ev.Err
		if errors.Is(why, ErrBothRun) {
			s.status.set(func(v *Status) { v.SplitBrain = true })
		}
	case MovesOn:
		why = ev.Err
	case Connected:
		s.status.set(func(v *Status) { v.SplitBrain = false })
	case SaveEnded:
		why = ev.Err
	case DisksLost:
		why = ev.Err
	case NotDrained:
		why = ev.Err
	case GateFailed:
		why = ev.Err
	case DomainChanged:
		why = ev.Err
	case GuestEnded:
		why = errors.New(ev.Why)
	}
	if why != nil {
		s.status.set(func(v *Status) { v.LastError = why.Error() })
	}
	if now == before {
		if ev, ok := ev.(ConnectFailed); ok && s.said.New("connect", ev.Err.Error()) {
			s.Log.Warn("backup can't take the domain", zap.Error(ev.Err))
		}
		return
	}
	if now == Protected {
		s.said.Forget("connect")
		s.protected = time.Now()
	}
	f := []zap.Field{zap.Stringer("from", before), zap.Stringer("to", now), zap.Uint64("epoch", s.m.Acked())}
	if why != nil {
		f = append(f, zap.NamedError("why", why))
	}
	switch now {
	case Arbitrating, Blocked:
		// While the arbiter can't be reached the one leads to the other, again and
		// again.
		if (now == Blocked || before != Blocked) && s.said.New("held", fmt.Sprint(now == Blocked)) {
			s.Log.Error("protection lost, output held", f...)
		}
	case Detaching:
		s.Log.Warn("protection lost, this host is the only runner", f...)
	case Ending:
		if why != nil {
			s.Log.Warn("protection ends", f...)
			break
		}
		s.Log.Info("state changed", f...)
	default:
		s.Log.Info("state changed", f...)
	}
	s.status.set(func(v *Status) { v.Since = time.Now() })
}

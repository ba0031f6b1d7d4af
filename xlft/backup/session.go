package backup

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

// A session is the backup's side of a protection: it holds the replica of one
// domain. It lives on after its connections broke, until the replica is
// destroyed or runs.
type session struct {
	r        *Receiver
	offer    wire.Offer
	peer     string        // the primary's name in the config
	id       string        // joins the session's connections
	conn     *wire.Conn    // the control connection, before ACCEPT
	control  *wire.Control // and from ACCEPT on
	data     chan *input
	hasData  atomic.Bool
	accepted chan struct{} // closed when the disks are open
	done     chan struct{} // closed at the end of run
	events   chan Event
	log      *zap.Logger
	said     xlft.Said

	// The loop's alone.
	m         Machine
	whole     *epoch // the epoch that Feed is about
	retry     <-chan time.Time
	exit      *Exit
	ownership xlft.Ownership // as recorded
	withdrawn chan struct{}  // of the claim under way: closed when the primary wants the domain back
	gone      chan struct{}  // closed when the replica has been destroyed; nil while nobody destroys it
	recorded  chan struct{}  // closed when the newest record is written, or can't be; after Destroy it is destroy's

	// Fixed once ACCEPT is sent.
	replica Replica
	feeder  *feeder
	disks   []*disk

	mu         sync.Mutex
	cond       *sync.Cond // broadcast when state changes
	state      State
	destroying bool               // the replica is being destroyed
	givenUp    bool               // nothing will run the replica any more, for certain
	unwanted   error              // why it was given up before ACCEPT
	begun      bool               // ACCEPT is about to be sent
	stopRun    context.CancelFunc // of the takeover under way
	replaying  chan struct{}      // closed when a takeover writes no more to the disks; nil if it never began to
	acked      uint64
	lastAck    time.Time
	bytes      uint64
	pageCache  int64                                     // bytes
	pace       func() (fed uint64, median time.Duration) // of the feeder; nil before ACCEPT
	lastError  string                                    // of the newest claim
	since      time.Time                                 // of the state
}

// newSession returns the session of an admitted offer. Known is what this host's
// record says of the domain.
func newSession(r *Receiver, o wire.Offer, peer string, known xlft.Ownership) *session {
	s := &session{
		r: r, offer: o, peer: peer, ownership: known,
		data: make(chan *input, 1), done: make(chan struct{}), accepted: make(chan struct{}),
		events: make(chan Event),
		log:    r.Log.With(zap.String("domain", o.Domain), zap.String("peer", peer)),
	}
	s.cond, s.since = sync.NewCond(&s.mu), time.Now()
	return s
}

// run carries the session from its admission to its end.
func (s *session) run(ctx context.Context) (err error) {
	defer close(s.done)
	defer func() { s.setState(Destroyed) }() // frees whoever waits for a state
	s.replica, err = s.r.Restorer.Restore(ctx, s.offer)
	if err != nil {
		return refuse(s.conn, wire.CodeUnfit, nil, err)
	}
	if err := s.openDisks(); err != nil {
		s.replica.Destroy()
		return refuse(s.conn, wire.CodeUnfit, nil, err)
	}
	defer s.closeDisks()
	// Recorded now, while a full disk is only a reason to refuse: a takeover
	// changes the record where it stands.
	s.ownership = xlft.Ownership{Generation: s.offer.Generation, Role: xlft.HostBackup, Peer: s.peer, UUID: s.offer.UUID, Took: s.ownership.Took}
	if err := s.r.Store.Save(s.offer.Domain, s.ownership); err != nil {
		s.replica.Destroy()
		return refuse(s.conn, wire.CodeInternal, nil, err)
	}
	if err := s.begin(); err != nil {
		s.replica.Destroy()
		return refuse(s.conn, codeOf(err), nil, err)
	}
	close(s.accepted)
	if err := s.conn.WriteFrame(wire.TypeAccept, 0, nil); err != nil {
		s.replica.Destroy()
		return err
	}
	s.control, s.feeder = wire.NewControl(s.conn, s.offer.FailureTimeout), newFeeder(s.replica)
	s.mu.Lock()
	s.pace = s.feeder.pace
	s.mu.Unlock()
	s.log.Info("replica begun", zap.Uint64("generation", s.offer.Generation))
	s.r.notify()

	// The replica outlives the receiver's own stop only if it runs.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.control.Close()
	defer cancel()
	defer s.feeder.close()
	wg.Go(func() { s.post(work, PrimaryLost{s.listen(work)}) })
	wg.Go(func() { s.control.Beat(work) }) // listen finds what breaks it
	wg.Go(func() {
		if ev := s.receive(work); ev != nil {
			s.post(work, ev)
		}
	})
	wg.Go(func() {
		if err := s.feeder.run(work); err != nil {
			s.post(work, ReplicaFailed{err})
		}
	})
	wg.Go(func() {
		select {
		case err := <-s.replica.Failed():
			s.post(work, ReplicaFailed{err})
		case <-work.Done():
		}
	})
	for s.exit == nil || s.gone != nil {
		select {
		case ev := <-s.events: // also while the replica is being destroyed: whoever asks is answered
			s.step(work, &wg, ev)
		case <-s.retry:
			s.retry = nil
			s.step(work, &wg, Retry{})
		case <-s.gone:
			s.gone = nil
			s.setState(s.m.State())
			s.r.notify()
		}
	}
	return s.exit.Err
}

func (s *session) step(ctx context.Context, wg *sync.WaitGroup, ev Event) {
	if a, ok := ev.(arrived); ok {
		s.whole, ev = a.epoch, a.Whole
	}
	before := s.m.State()
	told, byWord := ev.(told)
	if byWord {
		ev = told.Resolved
		if before != Claiming {
			told.taken <- false
			return
		}
		s.log.Warn("an operator's word decides who runs the domain", told.fields...)
	}
	acts := s.m.Step(ev)
	if byWord {
		told.taken <- len(acts) > 0
	}
	if st := s.m.State(); st != before {
		f := []zap.Field{zap.Stringer("from", before), zap.Stringer("to", st), zap.Uint64("epoch", s.m.Acked())}
		if lost, ok := ev.(PrimaryLost); ok {
			f = append(f, zap.NamedError("why", lost.Err))
		}
		s.log.Info("state changed", f...)
	}
	for _, a := range acts {
		s.do(ctx, wg, a)
	}
	if s.gone == nil { // whoever waits for Destroyed waits for the replica's end
		s.setState(s.m.State())
	}
	s.r.notify()
}

func (s *session) do(ctx context.Context, wg *sync.WaitGroup, a Action) {
	switch a := a.(type) {
	case Ack:
		s.mu.Lock()
		s.acked, s.lastAck = a.Epoch, time.Now()
		s.mu.Unlock()
		s.logSend(s.control.Send(wire.TypeAck, a.Epoch))
		if len(s.disks) > 0 {
			wg.Go(func() {
				if err := s.commitDisks(a.Epoch); err != nil {
					s.post(ctx, ReplicaFailed{err})
				}
			})
		}
	case Feed:
		s.feeder.put(s.whole)
		s.whole = nil
	case Claim:
		withdrawn := make(chan struct{})
		s.withdrawn = withdrawn
		wg.Go(func() { s.claim(ctx, a.Handed, withdrawn) })
	case Withdraw:
		if s.withdrawn != nil {
			close(s.withdrawn)
			s.withdrawn = nil
		}
	case RetryLater:
		s.retry = time.After(s.r.RetryDelay)
	case TakeOver:
		// The record comes first: from here on a process after this one looks
		// whether the domain runs here before it says so. The domain is won; that
		// it is must not be lost because a record can't be written.
		s.ownership.Role, s.ownership.Pending = xlft.HostOwner, true
		s.record(wg, "record the takeover; the domain is run anyway")
		run, cancel := context.WithTimeoutCause(ctx, s.r.takeoverLimit(), errTakeoverHangs)
		s.mu.Lock()
		s.stopRun = cancel
		s.mu.Unlock()
		wg.Go(func() {
			defer cancel()
			s.takeOver(ctx, run, wg)
		})
	case Destroy:
		s.mu.Lock()
		s.destroying, s.givenUp = true, !a.Begun
		stop := s.stopRun
		s.cond.Broadcast()
		s.mu.Unlock()
		if stop != nil {
			stop()
		}
		gone := make(chan struct{})
		s.gone = gone
		wg.Go(func() {
			defer close(gone)
			s.destroy(wg, a)
		})
	case SendRunning:
		s.ownership.Pending, s.ownership.Took = false, s.ownership.Generation
		s.record(wg, "record that the domain runs here")
		s.logSend(s.control.Send(wire.TypeRunning, 0))
	case Exit:
		s.exit = &a
	}
}

// errUnprotected: the primary ended the protection.
var errUnprotected = errors.New("the primary ended the protection")

func codeOf(why error) wire.Code {
	var r *wire.Refusal
	switch {
	case errors.As(why, &r):
		return r.Code
	case errors.Is(why, errStopping):
		return wire.CodeStopping
	case errors.Is(why, errUnprotected):
		return wire.CodeDestroyed
	case errors.Is(why, errReclaimed):
		return wire.CodeGeneration
	case errors.Is(why, ErrArbiterOther), errors.Is(why, ErrGivenUp):
		return wire.CodeArbiter
	}
	return wire.CodeReplica
}

// logSend logs a failed send on the control connection. Receive reports the loss
// itself.
func (s *session) logSend(err error) {
	if err != nil {
		s.log.Info("the primary can't be told", zap.Error(err))
	}
}

func (s *session) post(ctx context.Context, ev Event) {
	select {
	case s.events <- ev:
	case <-ctx.Done():
	}
}

// ask gives the loop an event from outside of the session. The loop may be busy for
// long, with a record on a disk that hangs: ctx has to end.
func (s *session) ask(ctx context.Context, ev Event) {
	select {
	case s.events <- ev:
	case <-s.done:
	case <-ctx.Done():
	}
}

// wait waits for the end of run.
func (s *session) wait(ctx context.Context) {
	select {
	case <-s.done:
	case <-ctx.Done():
	}
}

// settled waits until neither a claim nor a takeover is under way and, after a
// DestroyAsked, until the replica has been destroyed. It returns the state.
func (s *session) settled(ctx context.Context, destroying bool) State {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	for ctx.Err() == nil && !s.givenUp && (s.state == Claiming || s.state == TakingOver || destroying && (s.state == Syncing || s.state == Ready)) {
		s.cond.Wait()
	}
	if s.givenUp {
		return Destroyed
	}
	return s.state
}

func (s *session) isGivenUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.givenUp
}

func (s *session) now() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *session) isDestroying() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.destroying
}

func (s *session) setState(st State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != st && s.state != Running { // that stays known after run
		s.state, s.since = st, time.Now()
	}
	s.cond.Broadcast()
}

// status returns a snapshot.
func (s *session) status() Status {
	var h xlft.Health
	if s.r.Health != nil {
		h = s.r.Health(s.peer)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var fed uint64
	var restore time.Duration
	if s.pace != nil {
		fed, restore = s.pace()
	}
	return Status{
		Restored: fed, RestoreMedian: restore,
		Health: h,
		Domain: s.offer.Domain, Peer: s.peer, Arbiter: s.r.Arbiter.String(), State: s.state,
		Since: s.since, Epoch: s.acked, LastAck: s.lastAck, Generation: s.offer.Generation, Bytes: s.bytes, PageCache: s.pageCache,
		LastError: s.lastError,
	}
}

// listen reads the control connection; the error says why the primary counts
// as lost.
func (s *session) listen(ctx context.Context) error {
	for {
		f, err := s.control.Receive()
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.TypeDestroy:
			s.post(ctx, DestroyAsked{errUnprotected, true})
		case wire.TypeHandOver:
			if s.r.drained() {
				// Two hosts that are drained at once do not swap their domains: this one stays.
				s.post(ctx, DestroyAsked{errDrained(), false})
				break
			}
			s.post(ctx, Handed{f.Epoch})
		default:
			return fmt.Errorf("%w: %v", wire.ErrUnexpected, f.Type)
		}
	}
}

func (s *session) claim(ctx context.Context, handed bool, withdrawn <-chan struct{}) {
	c := xlft.Claim{Domain: s.offer.Domain, UUID: s.offer.UUID, Generation: s.offer.Generation, Side: xlft.Backup, Peer: s.peer, Handed: handed, Withdrawn: withdrawn}
	for _, d := range s.offer.Disks {
		c.Shared = c.Shared || d.Shared
	}
	v, err := xlft.Arbitrate(ctx, s.r.Arbiter, c)
	if s.said.New("arbiter", fmt.Sprint(v, err)) {
		f := []zap.Field{zap.Stringer("arbiter", s.r.Arbiter), zap.Uint64("generation", c.Generation), zap.Stringer("verdict", v), zap.Error(err)}
		if v == xlft.Unreachable {
			f = append(f, zap.String("decide_by", "xl ft-resolve "+c.Domain))
		}
		s.log.Warn("arbiter asked", f...)
	}
	s.mu.Lock()
	s.lastError = ""
	if err != nil {
		s.lastError = fmt.Sprintf("ask the arbiter (%v): %v", s.r.Arbiter, err)
	}
	s.mu.Unlock()
	s.post(ctx, Arbitrated{v})
}

package backup

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
	"time"

	"xlft/diskrepl"
	"xlft/savestream"
	"xlft/xlft"
	"xlft/xlft/wire"

	"go.uber.org/zap"
)

// A standby holds one domain's replica: the backup's side of a session. It
// lives on after the connections break, until it is gone or runs.
type standby struct {
	r        *Receiver
	offer    wire.Offer
	peer     string
	session  string
	control  *wire.Conn
	data     chan *wire.Conn // the data connection, once
	hasData  atomic.Bool
	accepted chan struct{} // closed when the disks are open
	done     chan struct{} // closed at the end of run
	events   chan StandbyEvent
	log      *zap.Logger

	// The loop's alone.
	m       StandbyMachine
	replica Replica
	disks   []*standbyDisk // fixed once ACCEPT is sent
	retry   *time.Timer
	finish  *Finish
	rec     xlft.Record // of a takeover

	wmu sync.Mutex // one writer at a time on control

	feed chan *epoch // whole epochs on their way to the restore; closed at takeover

	mu      sync.Mutex
	cond    *sync.Cond
	now     StandbyState
	leaving bool   // the replica is being destroyed
	fed     uint64 // newest epoch that the restore has
	whole   *epoch // the epoch that Feed is about
	acked   uint64
	lastAck time.Time
	bytes   uint64
	failed  error
	free    [][]byte
}

// An epoch is a checkpoint as it arrived, verified.
type epoch struct {
	number uint64
	pieces [][]byte
}

func newStandby(r *Receiver, o wire.Offer, peer string) *standby {
	s := &standby{
		r: r, offer: o, peer: peer,
		data: make(chan *wire.Conn, 1), done: make(chan struct{}), accepted: make(chan struct{}),
		events: make(chan StandbyEvent), feed: make(chan *epoch, 1),
		log: r.Log.With(zap.String("domain", o.Domain), zap.String("peer", peer)),
	}
	s.cond = sync.NewCond(&s.mu)
	return s
}

// run is the session: the offer was admitted, the control connection waits for
// ACCEPT.
func (s *standby) run(ctx context.Context) (err error) {
	defer close(s.done)
	defer func() { s.setState(Gone) }() // whoever waits need not any more
	s.replica, err = s.r.Restorer.Restore(ctx, s.offer)
	if err != nil {
		return refuse(s.control, wire.CodeUnfit, nil, err)
	}
	if err := s.openDisks(); err != nil {
		s.replica.Discard()
		return refuse(s.control, wire.CodeUnfit, nil, err)
	}
	defer s.closeDisks()
	close(s.accepted)
	if err := s.control.WriteFrame(wire.TypeAccept, 0, nil); err != nil {
		s.replica.Discard()
		return err
	}
	s.log.Info("replica begun", zap.Uint64("generation", s.offer.Generation))
	s.r.notify()

	// The replica outlives the receiver's own stop only if it runs.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.control.Close()
	defer cancel()
	defer s.endFeed()
	s.control.SetDeadline(time.Time{})
	wg.Go(func() { s.post(work, PrimaryLost{s.listen(work)}) })
	wg.Go(func() { s.beat(work) })
	wg.Go(func() {
		if ev := s.receive(work); ev != nil {
			s.post(work, ev)
		}
	})
	wg.Go(func() { s.feedLoop(work) })
	wg.Go(func() {
		select {
		case err := <-s.replica.Failed():
			s.post(work, ReplicaFailed{err})
		case <-work.Done():
		}
	})
	for s.finish == nil {
		select {
		case ev := <-s.events:
			s.step(work, &wg, ev)
		case <-timeC(s.retry):
			s.retry = nil
			s.step(work, &wg, RetryClaim{})
		}
	}
	return s.finish.Err
}

func (s *standby) step(ctx context.Context, wg *sync.WaitGroup, ev StandbyEvent) {
	before := s.m.State()
	acts := s.m.Step(ev)
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
	// Told after the actions: who waits for Gone waits for the replica's end.
	s.setState(s.m.State())
	s.r.notify()
}

func (s *standby) do(ctx context.Context, wg *sync.WaitGroup, a StandbyAction) {
	switch a := a.(type) {
	case Ack:
		s.mu.Lock()
		s.acked, s.lastAck = a.Epoch, time.Now()
		s.mu.Unlock()
		s.write(wire.TypeAck, a.Epoch, nil)
		if len(s.disks) > 0 {
			wg.Go(func() {
				if err := s.commitDisks(a.Epoch); err != nil {
					s.post(ctx, ReplicaFailed{err})
				}
			})
		}
	case Feed:
		s.mu.Lock()
		e := s.whole
		s.whole = nil
		s.mu.Unlock()
		s.feed <- e // has room: the one before it was fed before the ack
	case Claim:
		wg.Go(func() { s.claim(ctx, a.Handed) })
	case ClaimLater:
		s.retry = time.NewTimer(s.r.RetryDelay)
	case TakeOver:
		// First the record: from here on a primary that comes back, also after
		// a restart of this process, is told that the domain is this host's.
		// One that handed it over and lives is told so only when that is true.
		s.rec = xlft.Record{Generation: s.offer.Generation, Role: xlft.HostOwner, Peer: s.peer, Handed: s.m.handed}
		err := s.r.Store.Save(s.offer.Domain, s.rec)
		wg.Go(func() { s.takeOver(ctx, err) })
	case Discard:
		s.mu.Lock()
		s.leaving = true
		s.mu.Unlock()
		// Said first: from here on nothing runs the replica, and the primary
		// holds the domain's output until it knows. To free the memory of a
		// large one takes seconds.
		s.write(wire.TypeDropped, 0, wire.Refusal{Code: codeOf(a.Why), Reason: a.Why.Error()})
		if err := s.replica.Discard(); err != nil {
			s.log.Error("destroy the replica", zap.Error(err))
		}
		s.closeDisks()
	case SayRunning:
		if s.rec.Handed {
			s.rec.Handed = false
			if err := s.r.Store.Save(s.offer.Domain, s.rec); err != nil {
				s.log.Error("record that the domain runs here", zap.Error(err))
			}
		}
		s.write(wire.TypeRunning, 0, nil)
	case Finish:
		s.finish = &a
	}
}

// errDropped: the primary ended the protection.
var errDropped = errors.New("the primary ended the protection")

func codeOf(why error) wire.Code {
	switch {
	case errors.Is(why, errStopping):
		return wire.CodeStopping
	case errors.Is(why, errDropped):
		return wire.CodeDropped
	case errors.Is(why, errReclaimed):
		return wire.CodeGeneration
	case errors.Is(why, ErrArbiterOther):
		return wire.CodeArbiter
	}
	return wire.CodeReplica
}

// write sends a control frame. An error is the listener's to find.
func (s *standby) write(t wire.Type, epoch uint64, v any) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.control.SetWriteDeadline(time.Now().Add(s.offer.FailureTimeout))
	if v != nil {
		s.control.WriteJSON(t, epoch, v)
		return
	}
	s.control.WriteFrame(t, epoch, nil)
}

func (s *standby) post(ctx context.Context, ev StandbyEvent) {
	select {
	case s.events <- ev:
	case <-ctx.Done():
	}
}

// ask hands the loop an event from outside of it.
func (s *standby) ask(ctx context.Context, ev StandbyEvent) {
	select {
	case s.events <- ev:
	case <-s.done:
	case <-ctx.Done():
	}
}

// wait waits for the end of run.
func (s *standby) wait(ctx context.Context) {
	select {
	case <-s.done:
	case <-ctx.Done():
	}
}

// settled waits until no claim is under way and, after a DropAsked, until that
// has been carried out. It returns the state.
func (s *standby) settled(ctx context.Context, dropping bool) StandbyState {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	for ctx.Err() == nil && (s.now == Claiming || dropping && (s.now == Filling || s.now == Ready)) {
		s.cond.Wait()
	}
	return s.now
}

func (s *standby) state() StandbyState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *standby) isLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving
}

func (s *standby) setState(st StandbyState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != Running { // stays known as such after run
		s.now = st
	}
	s.cond.Broadcast()
}

// Status returns what is so now.
func (s *standby) Status() StandbyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return StandbyStatus{
		Domain: s.offer.Domain, Peer: s.peer, Arbiter: s.r.Arbiter.String(), State: s.now.String(),
		Epoch: s.acked, LastAck: s.lastAck, Generation: s.offer.Generation, Bytes: s.bytes,
	}
}

func (s *standby) beat(ctx context.Context) {
	t := time.NewTicker(s.offer.FailureTimeout / wire.HeartbeatsPerTimeout)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.write(wire.TypeHeartbeat, 0, nil)
		}
	}
}

// listen reads the control connection; the error says why the primary counts
// as lost.
func (s *standby) listen(ctx context.Context) error {
	for {
		s.control.SetReadDeadline(time.Now().Add(s.offer.FailureTimeout))
		f, err := s.control.ReadFrame()
		if err != nil {
			return wire.Silent(err, s.offer.FailureTimeout)
		}
		switch f.Type {
		case wire.TypeHeartbeat:
		case wire.TypeDrop:
			s.post(ctx, DropAsked{errDropped})
		case wire.TypeHandOver:
			s.post(ctx, Handed{f.Epoch})
		default:
			return fmt.Errorf("%w: %v", wire.ErrUnexpected, f.Type)
		}
	}
}

// receive takes epochs from the data connection, once that is there. It returns
// the event that ends the receiving; nil if that is not for it to judge.
func (s *standby) receive(ctx context.Context) StandbyEvent {
	var c *wire.Conn
	select {
	case c = <-s.data:
	case <-time.After(joinTimeout):
		return PrimaryLost{errors.New("no data connection came")}
	case <-ctx.Done():
		return nil
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var scan savestream.Scanner
	for number := uint64(1); ; number++ {
		e, ev := s.receiveEpoch(ctx, c, &scan, number)
		if lost, ok := ev.(PrimaryLost); ok {
			// The control connection says whether the primary lives, and what
			// it has decided: that may still be on its way.
			s.log.Info("no more checkpoints come", zap.Error(lost.Err))
			return nil
		}
		if ev != nil {
			return ev
		}
		// The ack waits for the restore to have taken the epoch before, so
		// that two epochs at most are in memory here.
		if !s.waitFed(number - 1) {
			return nil
		}
		if err := s.awaitDisks(ctx, number); err != nil {
			return s.diskOver(err)
		}
		s.mu.Lock()
		s.whole = e
		s.mu.Unlock()
		s.post(ctx, Whole{number})
	}
}

// diskOver is the event of a disk's session that ended. That a connection broke
// says nothing about the primary: the control connection does.
func (s *standby) diskOver(err error) StandbyEvent {
	if err == nil || errors.Is(err, diskrepl.ErrLost) || errors.Is(err, diskrepl.ErrDetached) || errors.Is(err, context.Canceled) {
		s.log.Info("no more of a disk comes", zap.Error(err))
		return nil
	}
	return ReplicaFailed{err}
}

// receiveEpoch returns epoch number, whole and verified. The first one goes to
// the restore as it comes.
func (s *standby) receiveEpoch(ctx context.Context, c *wire.Conn, scan *savestream.Scanner, number uint64) (*epoch, StandbyEvent) {
	bad := func(format string, args ...any) (*epoch, StandbyEvent) {
		return nil, ReplicaFailed{fmt.Errorf("epoch %d: "+format, append([]any{number}, args...)...)}
	}
	lost := func(err error) (*epoch, StandbyEvent) {
		var fe *wire.FrameError
		if errors.As(err, &fe) && protocolError(fe.Err) {
			return bad("%w", err)
		}
		return nil, PrimaryLost{fmt.Errorf("data connection broke: %w", err)}
	}
	f, err := c.ReadFrame()
	if err != nil {
		return lost(err)
	}
	if f.Type != wire.TypeEpochBegin || f.Epoch != number {
		return bad("%v of epoch %d instead of its begin", f.Type, f.Epoch)
	}
	e := &epoch{number: number}
	var sum wire.EpochEnd
	ended := false
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return lost(err)
		}
		if f.Epoch != number {
			return bad("%v of epoch %d inside", f.Type, f.Epoch)
		}
		switch f.Type {
		case wire.TypeData:
			sum.Length += uint64(len(f.Body))
			sum.CRC = crc32.Update(sum.CRC, wire.Castagnoli, f.Body)
			s.mu.Lock()
			s.bytes += uint64(len(f.Body))
			s.mu.Unlock()
			if ended && len(f.Body) > 0 {
				return bad("data after its checkpoint")
			}
			n, mark, err := scan.Scan(f.Body)
			if err != nil {
				return bad("%w", err)
			}
			if n < len(f.Body) {
				return bad("data after its checkpoint")
			}
			ended = mark == savestream.MarkCheckpoint
			if mark == savestream.MarkEnd {
				return bad("the stream ended")
			}
			if number == 1 {
				if _, err := s.replica.Write(f.Body); err != nil {
					return bad("feed the restore: %w", err)
				}
				break
			}
			if sum.Length > s.r.EpochLimit {
				return bad("larger than %d bytes: see checkpoint_memory in the config", s.r.EpochLimit)
			}
			e.pieces = append(e.pieces, f.Body)
			c.Own(s.spare())
		case wire.TypeEpochEnd:
			want, err := f.EpochEnd()
			if err != nil {
				return bad("%w", err)
			}
			if want != sum {
				return bad("%d bytes with CRC-32C %08x arrived, %d with %08x were sent", sum.Length, sum.CRC, want.Length, want.CRC)
			}
			if !ended {
				return bad("it does not end in a checkpoint")
			}
			if number == 1 {
				if err := s.replica.Checkpoint(); err != nil {
					return bad("feed the restore: %w", err)
				}
				s.setFed(1)
			}
			return e, nil
		default:
			return bad("%v inside", f.Type)
		}
	}
}

func protocolError(err error) bool {
	return errors.Is(err, wire.ErrTooLong) || errors.Is(err, wire.ErrType) || errors.Is(err, wire.ErrReserved)
}

// feedLoop gives whole epochs to the restore.
func (s *standby) feedLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-s.feed:
			for _, p := range e.pieces {
				if _, err := s.replica.Write(p); err != nil {
					s.post(ctx, ReplicaFailed{fmt.Errorf("feed epoch %d: %w", e.number, err)})
					return
				}
			}
			s.keep(e.pieces)
			if err := s.replica.Checkpoint(); err != nil {
				s.post(ctx, ReplicaFailed{fmt.Errorf("feed epoch %d: %w", e.number, err)})
				return
			}
			s.setFed(e.number)
		}
	}
}

// spare returns a buffer for a frame's body, or nil.
func (s *standby) spare() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		b := s.free[n-1]
		s.free = s.free[:n-1]
		return b
	}
	return nil
}

// keep takes buffers back for the next epoch.
func (s *standby) keep(bs [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := freeMax/wire.DataBody - len(s.free)
	s.free = append(s.free, bs[:min(room, len(bs))]...)
}

func (s *standby) setFed(e uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fed = e
	s.cond.Broadcast()
}

// endFeed frees whoever waits for a feed that will not come.
func (s *standby) endFeed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = wire.ErrHungUp
	s.cond.Broadcast()
}

// waitFed waits until the restore has epoch e.
func (s *standby) waitFed(e uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.fed < e && s.failed == nil {
		s.cond.Wait()
	}
	return s.failed == nil
}

func (s *standby) claim(ctx context.Context, handed bool) {
	v := xlft.Lost
	won, err := s.r.Arbiter.Claim(ctx, xlft.ArbiterQuery{Domain: s.offer.Domain, Generation: s.offer.Generation, Asker: xlft.AskerBackup, Peer: s.peer, Handed: handed})
	switch {
	case err != nil:
		s.log.Error("arbiter can't be reached: the domain waits", zap.Stringer("arbiter", s.r.Arbiter), zap.Error(err))
		v = xlft.Unreachable
	case won:
		v = xlft.Won
	}
	s.log.Warn("arbiter answered", zap.Stringer("arbiter", s.r.Arbiter), zap.Uint64("generation", s.offer.Generation), zap.Stringer("verdict", v))
	s.post(ctx, Claimed{v})
}

// takeOver makes the domain, which is this host's by now, run from the newest
// whole checkpoint.
func (s *standby) takeOver(ctx context.Context, err error) {
	begun := time.Now()
	s.mu.Lock()
	newest := s.acked
	s.mu.Unlock()
	if err == nil {
		if !s.waitFed(newest) {
			return
		}
		if err = s.finishDisks(newest); err == nil {
			err = s.replica.RunOn(ctx)
		}
	}
	if err != nil {
		s.post(ctx, ReplicaFailed{fmt.Errorf("take over: %w", err)})
		return
	}
	s.log.Warn("took the domain over", zap.Uint64("epoch", newest), zap.Duration("took", time.Since(begun)))
	s.post(ctx, Restored{})
}

// freeMax is how much memory is kept for the next epoch.
const freeMax = 64 << 20

func timeC(t *time.Timer) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}

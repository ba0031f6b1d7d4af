package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// begin reports, before ACCEPT, why the replica is not wanted any more; nil if it
// is.
func (s *session) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = s.unwanted == nil
	return s.unwanted
}

// giveUp asks the session to destroy the replica. One that was not accepted yet, and
// perhaps hangs in being made, is given up at once: nothing ever runs it.
func (s *session) giveUp(ctx context.Context, ev DestroyAsked) {
	s.mu.Lock()
	if !s.begun {
		s.unwanted, s.destroying, s.givenUp = ev.Why, true, true
		s.cond.Broadcast()
	}
	asked := !s.begun || s.givenUp
	s.mu.Unlock()
	if !asked {
		s.ask(ctx, ev)
	}
}

// takeOver runs the domain, which is this host's by now, from the newest whole
// checkpoint. Run ends at the takeover's limit, and when the replica is to be
// destroyed.
func (s *session) takeOver(ctx, run context.Context, wg *sync.WaitGroup) {
	begun := time.Now()
	s.mu.Lock()
	newest := s.acked
	s.mu.Unlock()
	err := s.feeder.await(run, newest)
	if errors.Is(err, errFeederClosed) {
		return
	}
	if err == nil {
		err = s.finishDisksWithin(run, wg, newest)
	}
	if err == nil {
		err = context.Cause(run)
	}
	if err == nil {
		err = s.replica.Activate(run)
	}
	if err != nil {
		s.post(ctx, ReplicaFailed{fmt.Errorf("take over: %w", err)})
		return
	}
	s.log.Warn("took the domain over", zap.Uint64("epoch", newest), zap.Duration("took", time.Since(begun)))
	s.post(ctx, Restored{})
}

// finishDisksWithin is finishDisks, but storage that hangs does not hold the takeover
// up: then it has failed, whatever becomes of the disks later.
func (s *session) finishDisksWithin(ctx context.Context, wg *sync.WaitGroup, epoch uint64) error {
	replaying := make(chan struct{})
	s.mu.Lock()
	if s.destroying {
		s.mu.Unlock()
		return errFailed
	}
	s.replaying = replaying
	s.mu.Unlock()
	done := make(chan error, 1)
	wg.Go(func() {
		defer close(replaying)
		done <- s.finishDisks(epoch)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the disks: %w", context.Cause(ctx))
	}
}

// awaitReplay waits until a takeover that failed writes no more to the disks.
func (s *session) awaitReplay() {
	s.mu.Lock()
	replaying := s.replaying
	s.mu.Unlock()
	if replaying != nil {
		<-replaying
	}
}

// destroy destroys the replica, and tells the primary as soon as it is certain that
// nothing runs it. It may take for ever: a worker hangs, or storage does.
func (s *session) destroy(wg *sync.WaitGroup, a Destroy) {
	destroyed := func() {
		s.logSend(s.control.SendJSON(wire.TypeDestroyed, wire.Refusal{Code: codeOf(a.Why), Reason: a.Why.Error()}))
	}
	if !a.Begun {
		// The primary is told first: from here on nothing runs the replica, and
		// the primary holds the domain's output until it knows. To free the
		// memory of a large replica takes seconds.
		destroyed()
	}
	if err := s.replica.Destroy(); err != nil {
		s.log.Error("destroy the replica", zap.Error(err))
	}
	if !a.Begun {
		s.closeDisks()
		return
	}
	failed := s.takeoverFailed(wg)
	if s.sharesDisks() {
		// What is still on its way to the storage would overwrite what the domain
		// writes there, once it runs on the primary again. It is recorded before: if
		// this host is switched off now, nothing is on its way any more.
		s.awaitReplay()
	}
	if failed {
		s.mu.Lock()
		s.givenUp = true
		s.cond.Broadcast()
		s.mu.Unlock()
		destroyed()
	}
	wg.Go(func() { // their storage may hang
		s.awaitReplay()
		if failed {
			s.takeBackDisks()
		}
		s.closeDisks()
	})
}

func (s *session) sharesDisks() bool {
	for _, d := range s.disks {
		if d.Shared {
			return true
		}
	}
	return false
}

// recordLimit is how long a takeover waits for a record. A disk that hangs must not
// keep a domain down that was won.
const recordLimit = 5 * time.Second

// record saves what this host knows of the domain, and waits for that for a while. A
// failure is logged, with what was to be done: there is an earlier record, and whoever
// reads it looks whether the domain runs here. Records are written in their order; the
// session lasts until the last one is.
func (s *session) record(wg *sync.WaitGroup, what string) {
	before, done, o := s.recorded, make(chan struct{}), s.ownership
	s.recorded = done
	wg.Go(func() {
		defer close(done)
		if before != nil {
			<-before
		}
		if err := s.r.Store.Save(s.offer.Domain, o); err != nil {
			s.log.Error(what, zap.Error(err))
		}
	})
	limit := time.NewTimer(recordLimit)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		s.log.Error(what, zap.Error(fmt.Errorf("the record is not written within %v, and is waited for no longer", recordLimit)))
	}
}

// takeoverFailed records a takeover that failed, and reports whether it is
// certain that the domain did not come to run here.
func (s *session) takeoverFailed(wg *sync.WaitGroup) bool {
	found, ran, err := s.r.outcome(s.offer.Domain, s.offer.UUID)
	if err != nil || found != FoundNothing || ran != RanNot {
		s.log.Error("a takeover failed, and the domain may run here, or have run here", zap.Error(err))
		return false
	}
	s.ownership.Role, s.ownership.Pending = xlft.HostFailed, false
	s.record(wg, "record that the takeover failed")
	return true
}

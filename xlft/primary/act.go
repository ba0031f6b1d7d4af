package primary

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// do carries out one action.
func (s *Session) do(ctx context.Context, a Action) {
	switch a := a.(type) {
	case Connect:
		if err := s.undo(); err != nil {
			s.postLater(ctx, ConnectFailed{err})
			return
		}
		gen := s.ownership.Generation
		s.spawn(func() { s.connect(ctx, gen) })
	case AskOwner:
		d := s.decider
		s.spawn(func() { s.askOwner(ctx, d) })
	case Claim:
		d, agreed, withdrawn := s.decider, s.ownership.Arbiter, make(chan struct{})
		s.withdrawn = withdrawn
		s.spawn(func() { s.claim(ctx, d, agreed, a.Handed, withdrawn) })
	case Withdraw:
		s.withdraw()
	case SyncDisks:
		s.beginSession(ctx)
	case BeginSave:
		// Recorded first: from the first byte on, a successor of this process
		// must ask before it releases anything.
		s.ownership.Exposed, s.ownership.Arbiter = true, s.link.offer.Arbiter
		if err := s.Store.Save(s.Domain, s.ownership); err != nil {
			s.save = nil
			s.postLater(ctx, saved{SaveEnded{err}, nil})
			return
		}
		s.why = WhyFirst
		s.trigger.take()
		s.beginSave(ctx)
		s.within(s.Settings.SuspendTimeout+s.Settings.AckTimeout, "the first checkpoint made no progress", s.save.spool)
	case Checkpoint:
		s.why = a.Why
		s.trigger.take()
		s.save.orders <- a
		s.within(s.Settings.SuspendTimeout+s.Settings.AckTimeout, "the capture of a checkpoint made no progress", s.save.spool)
	case EndSave:
		if s.save != nil { // it did not begin: its end is on its way
			s.save.cancel()
			s.within(s.Settings.SuspendTimeout+s.Settings.AckTimeout, "the save did not end", nil)
		}
	case Send:
		s.save.spool.open(a.Epoch)
		var progress *spool
		if a.Epoch == 1 {
			progress = s.save.spool // much of it may still wait here
		}
		s.within(s.Settings.AckTimeout, "no ack", progress)
	case Release:
		if s.m.State() != Ending { // there the limit is of the backup's answer
			s.awaitCheckpoint()
		}
		s.status.acked(a.Epoch, s.why, s.trigger.open(), s.save.spool)
		if !s.link.latest() {
			// What the backup said since is read next, and ends the protection.
			s.Log.Warn("this process stood still: output that was acknowledged meanwhile stays held", zap.Uint64("epoch", a.Epoch))
			return
		}
		if err := s.Gates.Release(a.Epoch); err != nil {
			s.fail(ctx, fmt.Errorf("release epoch %d: %w", a.Epoch, err))
		}
	case Resume:
		s.save.orders <- a
	case HandOver:
		// Released output must have left before the backup runs the domain and
		// the domain ends here: either could get in its way.
		drain, cancel := context.WithTimeout(ctx, min(s.Settings.FailureTimeout, drainMost))
		err := s.Gates.Drain(drain)
		cancel()
		if err != nil {
			s.postLater(ctx, NotDrained{fmt.Errorf("what was released has not left: %w", err)})
			return
		}
		// Recorded first: a successor of this process must not claim the domain
		// from a backup that was told to run it.
		s.ownership.Handed = true
		if err := s.Store.Save(s.Domain, s.ownership); err != nil {
			s.ownership.Handed = false
			s.postLater(ctx, NotDrained{fmt.Errorf("record the switch-over: %w", err)})
			return
		}
		if err := s.link.control.Send(wire.TypeHandOver, a.Epoch); err != nil {
			s.postLater(ctx, linked{BackupLost{err}, s.link})
		}
		s.within(s.Settings.AckTimeout, "the backup did not say that it runs the domain", nil)
	case AskDestroy:
		s.within(s.Settings.AckTimeout, "the backup did not destroy its replica", nil)
		if s.link == nil {
			s.postLater(ctx, BackupLost{errHungUp})
		} else if err := s.link.control.Send(wire.TypeDestroy, 0); err != nil {
			s.postLater(ctx, linked{BackupLost{err}, s.link})
		}
	case Pause:
		s.pause()
	case Unpause:
		s.unpause(s.insist)
	case ReleaseAll:
		s.letGo(s.insist)
	case NextGeneration:
		role := s.ownership.Role
		s.ownership = s.fresh(s.ownership.Generation + 1)
		if role == xlft.HostYielded {
			s.ownership.Role = role
		}
		s.decider = decider{s.Peer, s.Dial, s.ownership.Generation}
		if err := s.Store.Save(s.Domain, s.ownership); err != nil {
			s.Log.Error("record the change of owner", zap.Error(err))
		}
	case HangUp:
		if a.AskDestroy && s.link != nil {
			if err := s.link.control.Send(wire.TypeDestroy, 0); err != nil {
				s.Log.Info("the backup can't be told to destroy its replica", zap.Error(err))
			}
		}
		s.endLink()
	case RetryLater:
		s.caughtUp = false
		s.retry = time.After(s.delay(a.Failed))
	case Destroy:
		s.destroy()
	case CloseGate:
		s.closeGates()
	case Exit:
		a = s.exits(a)
		if s.ownership.Role == xlft.HostPrimary {
			// A start after this end is a first one. What is stuck is left to it.
			s.ownership.Proven, s.ownership.Begun = false, s.stuck != nil
			if err := s.Store.Save(s.Domain, s.ownership); err != nil {
				s.Log.Error("record that the protection has ended", zap.Error(err))
			}
		}
		if s.save != nil {
			s.save.cancel()
		}
		s.exit = &a
	}
}

// drainMost is how long the loop waits for output to leave before a switch-over.
const drainMost = 10 * time.Second

// within sets the limit of the wait that begins now, and ends the one before.
func (s *Session) within(wait time.Duration, what string, progress *spool) {
	s.limit.stop()
	s.limit = newLimit(wait, what, progress)
}

// awaitCheckpoint limits the wait for the next checkpoint.
func (s *Session) awaitCheckpoint() {
	set := s.Settings
	p, _ := s.trigger.paced()
	s.within(p.EpochMax+set.SuspendTimeout+set.AckTimeout, "no checkpoint was begun", nil)
}

// postLater posts from the loop itself.
func (s *Session) postLater(ctx context.Context, ev Event) {
	s.spawn(func() { s.post(ctx, ev) })
}

// fail ends the save, after an error that makes protection untrue.
func (s *Session) fail(ctx context.Context, err error) {
	s.Log.Error("protection failed", zap.Error(err))
	if s.save != nil {
		s.save.fail(err)
	}
}

func (s *Session) endLink() {
	s.limit = s.limit.stop()
	if s.link != nil {
		if d := s.Gates.Disks; d != nil {
			d.End()
		}
		s.link.close()
		s.link = nil
		s.status.set(func(st *Status) { st.PeerAddress = "" })
	}
}

func (s *Session) destroy() {
	if s.save != nil {
		s.save.destroyed.Store(true)
	}
	s.ownership.Role, s.ownership.Exposed, s.ownership.Handed, s.ownership.Paused = xlft.HostYielded, false, false, false
	s.ownership.Instance = s.Instance
	if err := s.Store.Save(s.Domain, s.ownership); err != nil {
		s.Log.Error("record that the domain was given up", zap.Error(err))
	}
	if err := s.Guest.Destroy(); err != nil {
		// Without the gate the copy could still send: the gate stays. A successor
		// finds the record, and tries again.
		s.hung(fmt.Errorf("destroy the local copy; its output stays held: %w", err))
		return
	}
	if err := s.insist(s.Gates.Discard); err != nil {
		s.Log.Error("drop the held output", zap.Error(err))
	}
}

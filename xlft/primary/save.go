package primary

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"xlft/xlft"

	"go.uber.org/zap"
)

// A save is one run of Guest.Save, on its own goroutine. It alone suspends and
// resumes the domain while it lasts.
type save struct {
	s         *Session
	spool     *spool
	offered   uint64      // pages that the backup knows of; 0: not told
	orders    chan Action // from the loop: a Checkpoint, or a Resume and the next one
	ctx       context.Context
	cancel    context.CancelFunc
	destroyed atomic.Bool // the domain was destroyed: leave it alone

	// The save goroutine's own.
	memory    xlft.Memory // as it must stay
	cp        Checkpoint
	suspended bool
	asked     time.Time
	stopped   time.Time
	sealed    time.Time
	taken     time.Time

	failed chan error // the first failure that the loop found
}

func (s *Session) beginSave(ctx context.Context) {
	v := &save{
		s: s, spool: s.link.spool, offered: s.link.pages,
		orders: make(chan Action, 2),
		cp:     Checkpoint{Epoch: 1},
		failed: make(chan error, 1),
	}
	v.ctx, v.cancel = context.WithCancel(ctx)
	s.save = v
	s.spawn(func() {
		err := v.run()
		s.post(ctx, saved{SaveEnded{err}, v})
	})
}

// run returns nil if the loop ended the save. The domain runs afterwards,
// unless it is gone.
func (v *save) run() error {
	err := v.hold()
	if err == nil {
		err = v.s.Guest.Save(v.ctx, v.spool, xlft.SaveHooks{Suspend: v.suspend, Captured: v.captured, Next: v.wait,
			Polled: func(err error) {
				if v.s.said.New("polled", err.Error()) {
					v.s.Log.Warn("each checkpoint takes longer: Xen does not tell when the domain has suspended", zap.Error(err))
				}
			},
		})
	}
	v.spool.fail(errSpoolClosed)
	if _, overflows := v.spool.usage(); overflows > 0 {
		v.s.trigger.overflowed()
	}
	v.release()
	if v.suspended && !v.destroyed.Load() {
		if rerr := v.s.insist(v.s.Guest.Resume); rerr != nil {
			v.s.Log.Error("resume the domain", zap.Error(rerr))
		} else {
			v.suspended = false
		}
	}
	select {
	case ferr := <-v.failed:
		return ferr
	default:
	}
	if v.ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("the save ended by itself")
	}
	return fmt.Errorf("save %s: %w", v.s.Domain, err)
}

// hold keeps the domain's pages as they are while the save lasts. It comes
// before the save: a page that came later would not be tracked.
func (v *save) hold() (err error) {
	if v.memory, err = v.s.Guest.HoldMemory(); err != nil {
		return fmt.Errorf("hold the domain's memory: %w", err)
	}
	if was := v.offered; was != 0 && was != v.memory.Pages {
		return fmt.Errorf("%w from %d to %d KiB while its disks were copied", xlft.ErrMemoryChanged, was*4, v.memory.Pages*4)
	}
	return nil
}

func (v *save) release() {
	if v.destroyed.Load() {
		return
	}
	if err := v.s.Guest.ReleaseMemory(); err != nil {
		v.s.Log.Warn("let the domain have its memory limit back", zap.Error(err))
	}
}

// sameMemory looks whether the domain has had the same pages since hold.
func (v *save) sameMemory() error {
	now, err := v.s.Guest.Memory()
	switch {
	case err != nil:
		return fmt.Errorf("look at the domain's memory: %w", err)
	case now.Pages != v.memory.Pages:
		return fmt.Errorf("%w from %d to %d KiB", xlft.ErrMemoryChanged, v.memory.Pages*4, now.Pages*4)
	case now.Limit != v.memory.Limit:
		return fmt.Errorf("%w: its limit was set to %d KiB", xlft.ErrMemoryChanged, now.Limit*4)
	}
	return nil
}

func (v *save) fail(err error) {
	select {
	case v.failed <- err:
	default:
	}
	v.cancel()
}

func (v *save) suspend() error {
	ctx, cancel := context.WithTimeout(v.ctx, v.s.Settings.SuspendTimeout)
	defer cancel()
	var err error
	if v.asked, err = v.s.Guest.Suspend(ctx); err != nil {
		return fmt.Errorf("suspend: %w", err)
	}
	v.suspended = true
	v.stopped = time.Now()
	v.spool.suspended()
	if err := v.sameMemory(); err != nil {
		return err
	}
	v.s.trigger.sealing()
	if err := v.s.Gates.Seal(v.cp.Epoch); err != nil {
		return fmt.Errorf("seal epoch %d: %w", v.cp.Epoch, err)
	}
	v.sealed = time.Now()
	return nil
}

func (v *save) captured() error {
	v.taken = time.Now()
	// A final checkpoint leaves the domain suspended until the switch-over is
	// decided, a strict one until its output has been let out. Another program may have
	// resumed the domain meanwhile, which Resume would notice.
	if v.cp.Final || v.cp.Strict {
		switch st, why, err := v.s.Guest.State(); {
		case err != nil:
			return fmt.Errorf("look at the domain: %w", err)
		case st == xlft.GuestOver:
			return fmt.Errorf("%w: %s", xlft.ErrGuestEnded, why)
		case st != xlft.GuestSuspended:
			v.suspended = false
			return errResumed
		}
	}
	switch {
	case v.cp.Final:
		v.count(v.taken)
	case !v.cp.Strict:
		if err := v.resume(v.taken); err != nil {
			return err
		}
	}
	v.s.trigger.captured()
	v.s.post(v.ctx, saved{Captured{v.cp.Epoch}, v})
	return nil
}

// errResumed: what was captured may be of several moments.
var errResumed = errors.New("another program resumed the domain while its checkpoint was captured")

// resume lets the domain run on; begun is when it no longer had to wait for anything.
func (v *save) resume(begun time.Time) error {
	if err := v.s.Guest.Resume(); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	v.suspended = false
	d := v.count(begun)
	v.s.trigger.resume(d.Total - d.Ack)
	return nil
}

// count counts how long the checkpoint stopped the domain.
func (v *save) count(begun time.Time) Downtime {
	now := time.Now()
	d := Downtime{
		Suspend: v.stopped.Sub(v.asked), Seal: v.sealed.Sub(v.stopped), Capture: v.taken.Sub(v.sealed),
		Ack: begun.Sub(v.taken), Resume: now.Sub(begun), Total: now.Sub(v.asked),
	}
	v.s.status.paused(v.cp.Epoch, d)
	return d
}

// wait waits for the next checkpoint, and resumes the domain when a strict one is
// acknowledged.
func (v *save) wait() bool {
	for {
		select {
		case order := <-v.orders:
			if cp, ok := order.(Checkpoint); ok {
				v.cp = cp
				return true
			}
			if err := v.resume(time.Now()); err != nil {
				// It is tried on, for as long as the end of a save may take. The loop
				// need not wait for that: no checkpoint follows.
				v.s.post(v.ctx, saved{GateFailed{err}, v})
				v.fail(err)
				return false
			}
		case <-v.ctx.Done():
			return false
		}
	}
}

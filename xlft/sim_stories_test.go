package xlft_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/backup"
)

// TestFalseSuspicion: a backup that is only slow to answer is told to destroy
// its replica before the primary closes the connection, so that the domain does
// not run twice even if the arbiter says yes to both.
func TestFalseSuspicion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 1, variant{arbiter: func(a xlft.Arbiter) xlft.Arbiter { return yesArbiter{a} }}, zap.NewNop())
		s.receive()
		s.protect()
		for range 20 {
			s.awaitProtected()
			time.Sleep(time.Duration(s.rng.Int64N(int64(2 * simEpoch))))
			s.net.Mute("B", true)
			time.Sleep(2 * simSilence)
			if st := s.session.Status(); st.Protected {
				t.Errorf("protected, says a primary that has not heard its backup for %v", 2*simSilence)
			}
			s.net.Mute("B", false)
		}
		s.endWell()
		if s.outside.Takeovers > 0 {
			t.Errorf("%d takeovers", s.outside.Takeovers)
		}
	})
}

// A lazyCopy holds up the last flush before the copy is recorded as Consistent,
// and remembers the state in which the copy was recorded last. It counts
// flushes: the first comes before the first copy, the second after it; then, if the journal is on
// stable storage, comes that of the first commit; then the one to hold up. For
// this the domain must not flush by itself, and its first checkpoint must
// arrive after the first copy.
type lazyCopy struct {
	backup.DiskCopy
	flush   chan struct{} // closed: the flush goes on
	hold    int64         // which flush since Begin
	flushes atomic.Int64  // since Begin
	durable diskrepl.EpochStore
	last    atomic.Value // xlft.DiskState
}

func (c *lazyCopy) Begin(st xlft.DiskState) error {
	c.flushes.Store(0)
	c.last.Store(st)
	return c.DiskCopy.Begin(st)
}

func (c *lazyCopy) Flush() error {
	if c.flushes.Add(1) == c.hold {
		<-c.flush
	}
	return c.DiskCopy.Flush()
}

func (c *lazyCopy) Record(r xlft.DiskRecord) error {
	c.last.Store(r.State)
	return c.DiskCopy.Record(r)
}

func (c *lazyCopy) Durable() diskrepl.EpochStore { return c.durable }

// lazySim runs until the domain is protected and the copy's flush is held up.
func lazySim(t *testing.T, durable diskrepl.EpochStore) (*sim, *lazyCopy) {
	c := &lazyCopy{flush: make(chan struct{}), hold: 3, durable: durable}
	if durable != nil {
		c.hold = 4
	}
	s := newSim(t, 2, variant{
		storage: mirrored, noFlush: true,
		copy: func(inner backup.DiskCopy) backup.DiskCopy { c.DiskCopy = inner; return c },
		guest: func(g xlft.Guest) xlft.Guest {
			return &hangingGuest{g, 1, func(context.Context) { time.Sleep(simEpoch) }}
		},
	}, zap.NewNop())
	s.receive()
	s.protect()
	s.awaitProtected()
	synctest.Wait()
	if n, st := c.flushes.Load(), c.last.Load(); n != c.hold || st != xlft.Inconsistent {
		t.Errorf("%d flushes of a copy that is recorded as %q: no flush is held up", n, st)
	}
	return s, c
}

// TestTakeoverInFirstFlush: the domain is taken over while the first copy is
// still being flushed. The record Consistent must not come after the record
// UpToDate.
func TestTakeoverInFirstFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := lazySim(t, nil)
		s.a.Crash()
		time.Sleep(4 * simSilence)
		close(c.flush)
		time.Sleep(simHeal)
		if d := s.b.Domain(simDomain); d == nil || !d.Runs() {
			t.Error("the domain does not run on B")
		}
		if st := c.last.Load(); st != xlft.UpToDate {
			t.Errorf("the disk of a domain that runs is recorded as %q", st)
		}
		s.endWell()
	})
}

// TestDurableAckWaitsForCopy: no epoch is acked as durable before its disk's
// copy is recorded as Consistent, because after a power cut the host would not
// promote the copy.
func TestDurableAckWaitsForCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := lazySim(t, diskrepl.EpochDir(t.TempDir()))
		time.Sleep(10 * simEpoch)
		if e := s.session.Status().Epoch; e != 1 {
			t.Errorf("epoch %d was acked, and the copy is known as %q", e, c.last.Load())
		}
		close(c.flush)
		time.Sleep(10 * simEpoch)
		if st := s.session.Status(); !st.Protected || st.Epoch < 2 {
			t.Errorf("after the flush: %+v", st)
		}
		s.endWell()
	})
}

package xlft_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// noneOf is arbiter none of a process, with arbiter.ping.
func noneOf(p *simxen.Process, outside func(context.Context) error) xlft.Arbiter {
	return p.Claims(arbiter.None{Asker: arbiter.Asker{Timeout: 2 * time.Second, Log: zap.NewNop(), Outside: outside,
		Ask: func(ctx context.Context, peer string, q wire.OwnerQuery) (r wire.OwnerResult, err error) {
			err = wire.Ask(ctx, p.Dial(peer), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r)
			return r, err
		}}})
}

// Both hosts and the network between them live; only the router answers no ping. A switch-over
// needs nobody.
func TestHandOverWithoutARouter(t *testing.T) {
	seams(t, func(m *seam) {
		silent := func(context.Context) error { time.Sleep(2 * time.Second); return errors.New("no answer to a ping") }
		m.receive(m.b, func(r *backup.Receiver) { r.RetryDelay = 5 * time.Second })
		m.receiver.Arbiter = noneOf(m.pb, silent)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Settings.AckTimeout, s.Settings.FailureTimeout, s.Settings.RetryDelay, s.Settings.RetryMax = 30*time.Second, time.Second, 5*time.Second, 5*time.Second
		})
		m.await(m.session, primary.Protected)
		begun := time.Now()
		o, err := m.session.Failover(context.Background())
		if err != nil || o != primary.SwitchedOver {
			m.t.Errorf("%v, %v after %v", o, err, time.Since(begun))
		}
		for !m.runs(m.b) && !m.domain.Runs() {
			time.Sleep(100 * time.Millisecond)
		}
		m.t.Logf("runs again after %v", time.Since(begun))
	}, "none")
}

// Two hosts are drained at once, as two that are not sound drain themselves: neither takes the
// other's domains.
func TestDrainedHostIsHandedNothing(t *testing.T) {
	seams(t, func(m *seam) {
		var drained atomic.Bool
		m.receive(m.b, func(r *backup.Receiver) { r.Drained = drained.Load })
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		drained.Store(true) // B's ft-drain moves its own domains first, and evicts the copies last
		if o, err := m.session.Failover(context.Background()); err == nil {
			m.t.Errorf("%v: the domain moves to a host that is drained itself", o)
		}
	}, "none")
}

// The primary is heard again while its backup still asks the outside: nothing has been done,
// and the claim is taken back.
func TestHeardAgainWhileOutsideIsAsked(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		m.receiver.Arbiter = noneOf(m.pb, func(ctx context.Context) error {
			select {
			case <-time.After(1500 * time.Millisecond):
			case <-ctx.Done():
			}
			return ctx.Err()
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		m.net.Cut(true)
		time.Sleep(simSilence + 200*time.Millisecond)
		m.net.Cut(false)
		time.Sleep(10 * time.Second)
		if !m.domain.Runs() || m.runs(m.b) {
			m.t.Errorf("A runs it %v: %+v", m.domain.Runs(), m.session.Status())
		}
	}, "none")
}

// A domain that waits, since nobody can be asked, is said to once, and not at each try.
func TestWaitIsSaidOnce(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		core, logs := observer.New(zap.ErrorLevel)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Log = zap.New(core)
		})
		m.await(m.session, primary.Protected)
		m.b.Crash()
		time.Sleep(2 * time.Minute)
		if st := m.session.Status().State; st != primary.Blocked && st != primary.Arbitrating {
			m.t.Fatalf("it is %v", st)
		}
		if n := logs.FilterMessage("protection lost, output held").Len(); n < 1 || n > 2 {
			m.t.Errorf("said %d times", n)
		}
	}, "manual")
}

package xlft_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
)

// What a process leaves behind that died, or that can't write or reach anything.

// A switch-over that can't be recorded does not begin.
func TestFullDiskAtHandOver(t *testing.T) {
	seams(t, func(m *seam) {
		f := &roomStore{full: new(atomic.Bool)}
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { f.Store, s.Store = s.Store, f })
		m.await(m.session, primary.Protected)
		f.full.Store(true)
		if o, err := m.session.Failover(context.Background()); err == nil {
			m.t.Errorf("the switch-over succeeded: %v", o)
		}
		if d := m.b.Domain(simDomain); d != nil && d.Runs() {
			m.t.Error("B runs the domain")
		}
		f.full.Store(false)
		m.await(m.session, primary.Protected)
	}, "none", "cas", "fence")
}

// dying is a Guest whose process dies when the domain is suspended, once armed.
type dying struct {
	xlft.Guest
	armed *atomic.Bool
	die   func()
}

func (d dying) Suspend(ctx context.Context) (time.Time, error) {
	asked, err := d.Guest.Suspend(ctx)
	if err == nil && d.armed.Load() {
		d.die()
	}
	return asked, err
}

// A protector dies while its domain is suspended, and its backup with it: the
// successor resumes the domain.
func TestSuspendedThenKilled(t *testing.T) {
	seams(t, func(m *seam) {
		var armed atomic.Bool
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Guest = dying{s.Guest, &armed, func() { m.b.Crash(); m.pa.Kill() }}
		})
		m.await(m.session, primary.Protected)
		armed.Store(true)
		for !m.pa.Dead() {
			time.Sleep(time.Millisecond)
		}
		if m.domain.Runs() {
			m.t.Fatal("it is not suspended")
		}
		m.protect(m.a, m.domain, "B", nil)
		if !m.runs(m.a) {
			m.t.Errorf("the only runner is suspended: %+v", m.session.Status())
		}
	}, "cas", "fence")
}

// A domain that ends while no checkpoint is taken has ended for its protector too.
func TestEndsWithoutBackup(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.b.Crash()
		m.await(m.session, primary.Connecting)
		m.domain.End("poweroff")
		select {
		case err := <-m.ended:
			if !errors.Is(err, xlft.ErrGuestEnded) {
				m.t.Errorf("the session ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			m.t.Errorf("ten seconds later: %+v", m.session.Status())
		}
	}, "cas", "fence")
}

// A backup that lives, and neither runs a domain that was handed to it nor gives it
// up, is not waited for without end.
func TestHandOverWithoutWord(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(context.Context, backup.Replica) error {
				time.Sleep(10 * time.Minute)
				return errors.New("hotplug script failed")
			}}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		failed := make(chan error, 1)
		go func() {
			_, err := m.session.Failover(context.Background())
			failed <- err
		}()
		// A limit on the next checkpoint would end it too, simEpoch+simSuspend later.
		time.Sleep(simAck + simSuspend/2)
		if st := m.session.Status(); st.State == primary.HandingOver {
			m.t.Errorf("after ack_timeout: %+v", st)
		}
		if err := <-failed; err == nil {
			m.t.Error("the switch-over succeeded")
		}
		time.Sleep(10 * time.Minute)
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "none", "cas", "fence")
}

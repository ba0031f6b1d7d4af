package xlft_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xlft/xlft/backup"
	"xlft/xlft/primary"
)

// Backups that are to be others: lost for good, drained, or not the domain's at all.

// A backup that is lost for good is not waited for for ever where there is another one:
// the session ends, with the domain running, and the next backup takes it.
func TestMovesOn(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		m.receive(m.c, nil)
		_, ended := m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Settings.MoveAfter = 10 * time.Second })
		m.await(m.session, primary.Protected)
		time.Sleep(time.Minute) // as long as the backup is there it is kept
		m.b.Crash()
		begun := time.Now()
		var err error
		select {
		case err = <-ended:
		case <-time.After(time.Hour):
			m.t.Fatalf("it waits: %+v", m.session.Status())
		}
		if err == nil || !strings.Contains(err.Error(), "B is not a backup again after 10s") {
			m.t.Errorf("it ended with %v", err)
		}
		if d := time.Since(begun); d < 10*time.Second || d > 20*time.Second {
			m.t.Errorf("it ended after %v", d)
		}
		if !m.domain.Runs() || m.domain.Undelivered() > 0 {
			m.t.Errorf("runs %v, %d packets held", m.domain.Runs(), m.domain.Undelivered())
		}
		s, _ := m.protect(m.a, m.domain, "C", nil)
		m.await(s, primary.Protected)
		m.a.Crash()
		if !m.runs(m.c) {
			m.t.Error("C does not take it over")
		}
	}, "none", "cas", "fence")
}

// A host that is drained takes no replicas, and ends those that it has: the domain runs on,
// and another backup takes it without a wait.
func TestDrained(t *testing.T) {
	seams(t, func(m *seam) {
		var drained atomic.Bool
		m.receive(m.b, func(r *backup.Receiver) { r.Drained = drained.Load })
		m.receive(m.c, nil)
		_, ended := m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Settings.MoveAfter = time.Hour })
		m.await(m.session, primary.Protected)
		drained.Store(true)
		time.Sleep(10 * time.Second)
		if !m.session.Status().Protected {
			m.t.Fatalf("the replica ended before it was asked to: %+v", m.session.Status())
		}
		m.receiver.Evict(context.Background())
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "this host is drained") {
				m.t.Errorf("it ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			m.t.Fatalf("it waits for a drained host: %+v", m.session.Status())
		}
		if !m.domain.Runs() || m.domain.Undelivered() > 0 || m.b.Domain(simDomain) != nil {
			m.t.Errorf("runs %v, %d packets held", m.domain.Runs(), m.domain.Undelivered())
		}
		s, ended := m.protect(m.a, m.domain, "C", nil)
		m.await(s, primary.Protected)
		m.pa.Terminate()
		<-ended
		drained.Store(false)
		s, _ = m.protect(m.a, m.domain, "B", nil)
		m.await(s, primary.Protected)
	}, "none", "cas", "fence")
}

// A replica whose primary is lost stays on a drained host: it may be all that is left.
func TestDrainedAlone(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) { r.Drained = func() bool { return m.a.Down() } })
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		m.a.Crash()
		time.Sleep(simSilence + 10*time.Millisecond)
		m.receiver.Evict(context.Background())
		if !m.runs(m.b) {
			m.t.Error("B dropped what was left of the domain")
		}
	}, "none", "cas", "fence")
}

// A domain whose output can't be let out yet is not left for another backup's sake:
// nobody else would go on trying to.
func TestMovesOnOnlyWhenFree(t *testing.T) {
	seams(t, func(m *seam) {
		r := new(refusing)
		m.receive(m.b, nil)
		_, ended := m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Settings.MoveAfter = 10 * time.Second
			s.Gates.Net = refusingGate{s.Gates.Net, r}
		})
		m.await(m.session, primary.Protected)
		r.what.Store(refusesGate)
		m.b.Crash()
		m.await(m.session, primary.Connecting)
		time.Sleep(time.Minute)
		if m.domain.Undelivered() == 0 {
			m.t.Fatal("nothing is held")
		}
		select {
		case err := <-ended:
			m.t.Fatalf("it ended with output held: %v", err)
		default:
		}
		r.what.Store(refusesNothing)
		if err := <-ended; m.domain.Undelivered() > 0 || !m.domain.Runs() {
			m.t.Errorf("it ended with %v; %d packets are held, it runs: %v", err, m.domain.Undelivered(), m.domain.Runs())
		}
	}, "none", "cas", "fence")
}

// A host is drained, and its copies end, while another host's offer is looked at: that
// copy does not stay either.
func TestDrainedWhileAdmitted(t *testing.T) {
	seams(t, func(m *seam) {
		var looks atomic.Int64
		m.receive(m.b, func(r *backup.Receiver) {
			r.Drained = func() bool {
				if looks.Add(1) > 1 {
					return true
				}
				// The mark and the end of all copies come just after this look.
				r.Evict(context.Background())
				return false
			}
		})
		_, ended := m.protect(m.a, m.domain, "B", nil)
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "drained") {
				m.t.Errorf("it ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			m.t.Errorf("a drained host took a copy: %+v", m.session.Status())
		}
		if !m.domain.Runs() {
			m.t.Error("the domain does not run")
		}
	}, "none", "cas", "fence")
}

// A host that is drained for long says the same each time.
func TestDrainedForLong(t *testing.T) {
	seams(t, func(m *seam) {
		var drained atomic.Bool
		m.receive(m.b, func(r *backup.Receiver) { r.Drained = drained.Load })
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		drained.Store(true)
		m.receiver.Evict(context.Background())
		m.await(m.session, primary.Connecting)
		time.Sleep(time.Second)
		why := m.session.Status().LastError
		time.Sleep(10 * time.Minute)
		if st := m.session.Status(); st.LastError != why {
			m.t.Errorf("first %.200q, and later %.200q (%d bytes)", why, st.LastError, len(st.LastError))
		}
	}, "none", "cas", "fence")
}

// A host died, its backup runs the domain, and somebody starts the domain on the host that
// came back: that one is not protected by a third host either, which would not know.
func TestStaleToThird(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		m.receive(m.c, nil)
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		m.a.Crash()
		if !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		m.splits = true
		m.a.PowerOn()
		d := m.a.Boot(simDomain, 16)
		for _, peer := range []string{"B", "C", "C"} {
			s, ended := m.protect(m.a, d, peer, func(s *primary.Session) { s.Instance, s.Peers = "another boot", []string{"B", "C"} })
			select {
			case err := <-ended:
				if !errors.Is(err, primary.ErrBothRun) {
					m.t.Errorf("to %s it ended with %v", peer, err)
				}
			case <-time.After(10 * time.Second):
				m.t.Fatalf("to %s it is %v", peer, s.Status().State)
			}
		}
		// The one that its clients know is.
		onB, _ := m.protect(m.b, m.b.Domain(simDomain), "C", nil)
		m.await(onB, primary.Protected)
	}, "cas", "fence")
}

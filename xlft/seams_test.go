package xlft_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// Cases at the seams, each found by a review of the protocol: third hosts, records
// that are lost or can't be written, takeovers that fail, waits without an end.

// A roomStore is a store whose file system may have no room; what it had is there.
type roomStore struct {
	xlft.Store
	full *atomic.Bool
}

func (f *roomStore) Save(d string, o xlft.Ownership) error {
	if f.full.Load() {
		return syscall.ENOSPC
	}
	return f.Store.Save(d, o)
}

// C2: a host that took a domain over, and protects it to a third one since, still
// knows that the first host's copy is outdated.
func TestOwnerRemembers(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, m.cutAtTakeover)
		m.receive(m.c, nil)
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		if m.kind == "none" {
			m.pa.Kill()
			m.net.CutPair("A", "B", true)
		} else {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			m.session.Failover(ctx)
			cancel()
		}
		if !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		onB, _ := m.protect(m.b, m.b.Domain(simDomain), "C", nil)
		m.await(onB, primary.Protected)
		m.net.CutPair("A", "B", false)
		if m.kind == "none" {
			m.protect(m.a, m.domain, "B", nil)
		}
		time.Sleep(10 * time.Second)
		if d := m.a.Domain(simDomain); d != nil && d.Runs() {
			m.t.Error("A runs its outdated copy")
		}
	}, "fence", "none")
}

// C3: a successor asks the host that may run the domain, whoever is to be the
// backup from now on.
func TestRecordedPeerIsAsked(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		m.receive(m.c, nil)
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		m.pa.Kill()
		if m.kind == "none" {
			if !m.runs(m.b) {
				m.t.Fatal("B does not run the domain")
			}
		}
		m.protect(m.a, m.domain, "C", nil)
		time.Sleep(5 * time.Second)
		if a, b := m.a.Domain(simDomain), m.b.Domain(simDomain); a != nil && a.Runs() && b != nil && b.Runs() {
			m.t.Error("both run")
		}
	}, "none", "cas")
}

// C4: a takeover that fails leaves a backup that says so, and a primary that keeps
// its copy.
func TestFailedTakeover(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(context.Context, backup.Replica) error { return errors.New("hotplug script failed") }}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		m.pa.Kill()
		time.Sleep(time.Second)
		if o, err := m.records[m.b].Load(simDomain); err != nil || o.Role != xlft.HostFailed {
			m.t.Errorf("B's record is %+v, %v", o, err)
		}
		m.protect(m.a, m.domain, "B", nil)
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "none", "cas")
}

// M1: a switch-over in which the backup never runs the domain has an end, and is
// not called protected.
func TestHandoverHangs(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(ctx context.Context, _ backup.Replica) error { <-ctx.Done(); return context.Cause(ctx) }}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		failed := make(chan error, 1)
		go func() {
			_, err := m.session.Failover(context.Background())
			failed <- err
		}()
		time.Sleep(10 * time.Second)
		if st := m.session.Status(); st.Protected {
			m.t.Errorf("protected, in %v, while nobody runs the domain", st.State)
		}
		if err := <-failed; err == nil {
			m.t.Error("the switch-over succeeded")
		}
		time.Sleep(5 * time.Minute)
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "none", "cas", "fence")
}

// H2: a protector that comes back needs no room to let the output out.
func TestFullDiskAtRecovery(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.b.Crash()
		m.pa.Kill()
		f := &roomStore{full: new(atomic.Bool)}
		f.full.Store(true)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { f.Store, s.Store = s.Store, f })
		time.Sleep(time.Minute)
		select {
		case err := <-m.ended:
			m.t.Errorf("the protector ended: %v", err)
		default:
		}
		waiting := m.domain.Undelivered()
		time.Sleep(time.Second)
		if n := m.domain.Undelivered(); n >= max(waiting, 20) {
			m.t.Error("the output stays held")
		}
	}, "cas", "none", "fence")
}

// H3: a domain that is won is run, also if that can't be recorded.
func TestFullDiskAtTakeover(t *testing.T) {
	seams(t, func(m *seam) {
		f := &roomStore{full: new(atomic.Bool)}
		m.receive(m.b, func(r *backup.Receiver) { f.Store, r.Store = r.Store, f })
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		f.full.Store(true)
		m.a.Crash()
		if !m.runs(m.b) {
			m.t.Error("one host died, and the domain runs nowhere")
		}
	}, "cas", "none", "fence")
}

// H3: a backup that can't record anything says so before it is relied on.
func TestFullDiskAtOffer(t *testing.T) {
	seams(t, func(m *seam) {
		f := &roomStore{full: new(atomic.Bool)}
		f.full.Store(true)
		m.receive(m.b, func(r *backup.Receiver) { f.Store, r.Store = r.Store, f })
		m.protect(m.a, m.domain, "B", nil)
		if err := <-m.ended; err == nil || !strings.Contains(err.Error(), "no space left") {
			m.t.Errorf("the session ended with %v", err)
		}
	}, "cas")
}

// H4: a successor unpauses what its predecessor paused.
func TestPausedThenKilled(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.cas.Cut("A", true)
		m.b.Crash()
		m.await(m.session, primary.Blocked)
		if m.domain.Runs() {
			m.t.Error("it is not paused")
		}
		m.pa.Kill()
		m.cas.Cut("A", false)
		m.protect(m.a, m.domain, "B", nil)
		if !m.runs(m.a) {
			m.t.Errorf("the only runner is paused: %+v", m.session.Status())
		}
	}, "cas", "fence")
}

// H6: hosts that hear each other again need no arbiter.
func TestBothHearEachOtherAgain(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.cas.Cut("A", true)
		m.cas.Cut("B", true)
		m.net.Cut(true)
		time.Sleep(2 * time.Second)
		m.net.Cut(false)
		if !m.runs(m.a) && !m.runs(m.b) {
			m.t.Errorf("both hosts live and hear each other, and the domain stands still: %+v, %+v", m.session.Status(), m.receiver.Replicas())
		}
		time.Sleep(5 * time.Second)
		if m.a.Down() || m.b.Down() {
			m.t.Error("a healthy host was fenced")
		}
	}, "fence")
}

// M4: a host that is no side of a protection can't end it.
func TestThirdHostCannotReclaim(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		var r wire.OwnerResult
		q := wire.OwnerQuery{Domain: simDomain, Generation: 1, Reclaim: true}
		if err := wire.Ask(context.Background(), m.spawn(m.c).Dial("B"), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r); err != nil {
			m.t.Error(err)
		}
		time.Sleep(time.Second)
		if st := m.session.Status(); st.State != primary.Protected || st.LastError != "" {
			m.t.Errorf("%+v", st)
		}
	}, "cas")
}

// M8: when hosts that both run a domain hear each other again, they say so.
func TestSplitBrainIsSaid(t *testing.T) {
	seams(t, func(m *seam) {
		m.splits = true
		m.begin()
		m.net.Cut(true)
		if time.Sleep(5 * time.Second); !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		m.net.Cut(false)
		time.Sleep(5 * time.Second)
		if st := m.session.Status(); !strings.Contains(st.LastError, primary.ErrBothRun.Error()) {
			m.t.Errorf("the primary says %q", st.LastError)
		} else if !st.SplitBrain {
			m.t.Error("the primary's status does not say so")
		}
		if c := m.receiver.Conflicts(); len(c) != 1 || c[0].Domain != simDomain || c[0].Peer != "A" {
			m.t.Errorf("the other host says %+v", c)
		}
		// An operator destroys one of them.
		m.b.Shutdown()
		m.await(m.session, primary.Protected)
		if st := m.session.Status(); st.SplitBrain || len(m.receiver.Conflicts()) != 0 {
			m.t.Error("it is still called a split brain")
		}
	}, "none")
}

// M8, M15: the generations of both hosts advance together. A host whose record was
// lost protects at once to a host that knows newer generations.
func TestOlderGeneration(t *testing.T) {
	seams(t, func(m *seam) {
		if err := m.records[m.b].Save(simDomain, xlft.Ownership{Generation: 4, Role: xlft.HostOwner, Peer: "A", UUID: "u", Took: 4}); err != nil {
			m.t.Fatal(err)
		}
		m.begin()
		if g := m.session.Status().Generation; g != 5 {
			m.t.Errorf("generation %d", g)
		}
	}, "cas", "fence", "none")
}

// H9: hosts that would decide differently do not protect each other's domains.
func TestArbitersDiffer(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) { r.Arbiter = arbiter.None{} })
		m.protect(m.a, m.domain, "B", nil)
		if err := <-m.ended; err == nil || !strings.Contains(err.Error(), "arbiter.type") {
			m.t.Errorf("the session ended with %v", err)
		}
	}, "fence")
}

// C3: a gate that holds is evidence of a predecessor, also if its record is lost.
func TestRecordLost(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.pa.Kill()
		if !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		m.records[m.a] = records(m.t)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.FoundHolding = true })
		time.Sleep(5 * time.Second)
		if d := m.a.Domain(simDomain); d != nil && d.Runs() {
			m.t.Error("both run")
		}
	}, "none", "cas")
}

// M3: a capture that never returns ends its process; the successor lets the output
// out.
func TestCaptureHangsForGood(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		let := make(chan struct{})
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Guest = &hangingGuest{s.Guest, 4, func(context.Context) { <-let }}
		})
		m.await(m.session, primary.Protected)
		for range 100 {
			if m.pa.Dead() {
				break
			}
			time.Sleep(time.Second)
		}
		if !m.pa.Dead() {
			m.t.Errorf("the process goes on: %+v", m.session.Status())
		}
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		close(let)
	}, "cas")
}

// A bypassed gate is one past which packets go: it says so when it is asked.
type bypassedGate struct {
	xlft.Gate
	bypassed *atomic.Bool
}

var errBypassedGate = errors.New("vif1.0: the redirect is gone")

func (g bypassedGate) Held() (held, limit uint64, err error) {
	if g.bypassed.Load() {
		return 0, 0, errBypassedGate
	}
	return g.Gate.Held()
}

// N2: a gate that does not hold any more ends the protection, with its reason; and
// no new one begins until it holds again.
func TestBypassedGate(t *testing.T) {
	seams(t, func(m *seam) {
		bypassed := new(atomic.Bool)
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Gates.Net = bypassedGate{s.Gates.Net, bypassed} })
		m.await(m.session, primary.Protected)
		bypassed.Store(true)
		begun := time.Now()
		for m.session.Status().Protected && time.Since(begun) < time.Minute {
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(begun); d > 5*simEpoch {
			m.t.Errorf("\"protected\" for %v", d)
		}
		time.Sleep(3 * time.Second)
		if st := m.session.Status(); st.State != primary.Connecting || !strings.Contains(st.LastError, errBypassedGate.Error()) {
			m.t.Errorf("%v: %s", st.State, st.LastError)
		}
		bypassed.Store(false)
		m.await(m.session, primary.Protected)
	}, "cas", "none")
}

// A tiredListener can't accept for a time, as when a process has no descriptors
// left.
type tiredListener struct {
	net.Listener
	failures *atomic.Int64
}

func (l tiredListener) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, syscall.EMFILE
	}
	return l.Listener.Accept()
}

// M7: a receiver that can't take a connection keeps its replicas, and takes the next
// one that it can.
func TestAcceptFails(t *testing.T) {
	seams(t, func(m *seam) {
		p := m.spawn(m.b)
		m.pb = p
		failures := new(atomic.Int64)
		failures.Store(20)
		r := &backup.Receiver{
			Software: "sim", Restorer: &simxen.Restorer{P: p}, Arbiter: m.arbiter(p), Store: p.Store(m.records[m.b]), Log: zap.NewNop(),
			PeerName: func(c net.Conn) string { return c.(*simxen.Conn).From() }, RetryDelay: time.Second, EpochLimit: 1 << 20,
		}
		ended := make(chan error, 1)
		go func() { ended <- r.Serve(p.Context(), tiredListener{p.Listen(), failures}) }()
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		select {
		case err := <-ended:
			m.t.Errorf("the receiver ended: %v", err)
		default:
		}
	}, "cas")
}

package xlft_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/internal/store"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// Cases at the seams, each found by a review of the protocol: third hosts, records
// that are lost or can't be written, takeovers that fail, waits without an end.

// A seam is two hosts whose parts a case can choose, and a third one.
type seam struct {
	t        *testing.T
	outside  *simxen.Outside
	net      *simxen.Net
	a, b, c  *simxen.Host
	cas      *simxen.Arbiter
	kind     string // of the arbiters: "cas", "fence" or "none"
	splits   bool   // both hosts run the domain, as the case wants
	domain   *simxen.Domain
	records  map[*simxen.Host]store.Dir
	procs    []*simxen.Process
	pa, pb   *simxen.Process
	session  *primary.Session
	receiver *backup.Receiver
	ended    chan error
}

func newSeam(t *testing.T, kind string) *seam {
	m := &seam{t: t, kind: kind, outside: simxen.NewOutside(1), net: simxen.NewNet(2 * time.Millisecond), cas: simxen.NewArbiter()}
	m.outside.NoDisks = true
	host := func(name string) *simxen.Host { return simxen.NewHost(m.outside, m.net, name) }
	m.a, m.b, m.c = host("A"), host("B"), host("C")
	m.records = map[*simxen.Host]store.Dir{m.a: records(t), m.b: records(t), m.c: records(t)}
	m.domain = m.a.Boot(simDomain, 12)
	return m
}

func (m *seam) spawn(h *simxen.Host) *simxen.Process {
	p := h.Spawn()
	m.procs = append(m.procs, p)
	return p
}

func (m *seam) arbiter(p *simxen.Process) xlft.Arbiter {
	return arbiterOf(m.kind, p, m.cas, m.a, m.b, m.c)
}

// arbiterOf returns a process's arbiter of a kind: the simulated one, "cas", or the
// product's "fence" or "none".
func arbiterOf(kind string, p *simxen.Process, cas *simxen.Arbiter, hosts ...*simxen.Host) xlft.Arbiter {
	ask := arbiter.Asker{Timeout: 2 * simSilence, Log: zap.NewNop(), Ask: func(ctx context.Context, peer string, q wire.OwnerQuery) (r wire.OwnerResult, err error) {
		err = wire.Ask(ctx, p.Dial(peer), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r)
		return r, err
	}}
	switch kind {
	case "none":
		return p.Claims(arbiter.None{Asker: ask})
	case "fence":
		peers := map[string]config.Peer{}
		for _, h := range hosts {
			peers[h.Name] = config.Peer{Name: h.Name, Fence: &config.Fence{Options: map[string]string{"plug": h.Name}}}
		}
		return p.Claims(&arbiter.Fence{Asker: ask, Peers: peers, Agent: p.FenceAgent(cas, hosts...)})
	}
	return p.Arbiter(cas)
}

func (m *seam) receive(h *simxen.Host, change func(*backup.Receiver)) {
	p := m.spawn(h)
	r := &backup.Receiver{
		Software: "sim", Restorer: &simxen.Restorer{P: p}, Arbiter: m.arbiter(p), Store: p.Store(m.records[h]), Log: zap.NewNop(),
		PeerName:   func(c net.Conn) string { return c.(*simxen.Conn).From() },
		RetryDelay: 100 * time.Millisecond, EpochLimit: 1 << 20,
	}
	if change != nil {
		change(r)
	}
	if h == m.b {
		m.pb, m.receiver = p, r
	}
	go r.Serve(p.Context(), p.Listen())
}

// protect starts a protector of a domain on a host, to a peer.
func (m *seam) protect(h *simxen.Host, d *simxen.Domain, peer string, change func(*primary.Session)) (*primary.Session, chan error) {
	p := m.spawn(h)
	s := &primary.Session{
		Domain: simDomain, Instance: h.Name + "/1", Software: "sim", Offer: wire.Offer{UUID: "u", Config: []byte("{}")},
		Guest: p.Guest(d), Gates: xlft.Gates{Net: p.Gate(d)}, Arbiter: m.arbiter(p), Dial: p.Dial(peer), Peer: peer,
		DialPeer: func(name string) wire.Dialer { return p.Dial(name) }, Store: p.Store(m.records[h]), Log: zap.NewNop(),
		Settings: primary.Settings{
			EpochMax: simEpoch, FailureTimeout: simSilence, AckTimeout: simAck, SuspendTimeout: simSuspend,
			RetryDelay: 100 * time.Millisecond, RetryMax: 200 * time.Millisecond, SpoolLimit: 1 << 20,
		},
		Hung: func(error) { p.Kill() },
	}
	if change != nil {
		change(s)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(p.Context()) }()
	if h == m.a {
		m.pa, m.session, m.ended = p, s, ended
	}
	return s, ended
}

// begin has A's domain protected by B.
func (m *seam) begin() {
	m.t.Helper()
	m.receive(m.b, nil)
	m.protect(m.a, m.domain, "B", nil)
	m.await(m.session, primary.Protected)
}

func (m *seam) await(s *primary.Session, want primary.State) {
	m.t.Helper()
	for range 1000 {
		if s.Status().State == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Fatalf("not %v: %+v", want, s.Status())
}

// runs reports whether the domain comes to run on a host within seconds.
func (m *seam) runs(h *simxen.Host) bool { return runs(h) }

// end stops everything, and checks the promises.
func (m *seam) end() {
	m.t.Helper()
	for _, v := range m.outside.Violations() {
		if !m.splits {
			m.t.Error(v)
		}
	}
	for _, p := range m.procs {
		p.Terminate()
	}
	time.Sleep(30 * time.Second)
	for _, p := range m.procs {
		p.Kill()
	}
	for _, h := range []*simxen.Host{m.a, m.b, m.c} {
		h.Shutdown()
	}
}

// seams runs a case with several kinds of arbiters.
func seams(t *testing.T, f func(m *seam), kinds ...string) {
	for _, k := range kinds {
		t.Run(k, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newSeam(t, k)
				f(m)
				m.end()
			})
		})
	}
}

// A restoring wraps the Activate of a Restorer's replicas.
type restoring struct {
	backup.Restorer
	activate func(ctx context.Context, r backup.Replica) error
}

type activating struct {
	backup.Replica
	activate func(ctx context.Context, r backup.Replica) error
}

func (r restoring) Restore(ctx context.Context, o wire.Offer) (backup.Replica, error) {
	v, err := r.Restorer.Restore(ctx, o)
	return activating{v, r.activate}, err
}

func (a activating) Activate(ctx context.Context) error { return a.activate(ctx, a.Replica) }

// cutAtTakeover cuts A from B when B begins to run the domain.
func (m *seam) cutAtTakeover(r *backup.Receiver) {
	r.Restorer = restoring{r.Restorer, func(ctx context.Context, v backup.Replica) error {
		m.net.CutPair("A", "B", true)
		return v.Activate(ctx)
	}}
}

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

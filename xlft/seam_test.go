package xlft_test

import (
	"context"
	"net"
	"sync"
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

// A seam is two hosts whose parts a case can choose, and a third one.
type seam struct {
	t        *testing.T
	outside  *simxen.Outside
	net      *simxen.Net
	a, b, c  *simxen.Host
	cas      *simxen.Arbiter
	kind     string // of the arbiters: "cas", "fence", "manual" or "none"
	splits   bool   // both hosts run the domain, as the case wants
	domain   *simxen.Domain
	records  map[*simxen.Host]store.Dir
	procs    []*simxen.Process
	pa, pb   *simxen.Process
	session  *primary.Session
	receiver *backup.Receiver
	ended    chan error
	running  sync.WaitGroup // protectors and receivers, also dead ones
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
// product's "fence", "ledger", "manual" or "none".
func arbiterOf(kind string, p *simxen.Process, cas *simxen.Arbiter, hosts ...*simxen.Host) xlft.Arbiter {
	ask := arbiter.Asker{Timeout: 2 * simSilence, HeadStart: simSilence, Log: zap.NewNop(), Ask: func(ctx context.Context, peer string, q wire.OwnerQuery) (r wire.OwnerResult, err error) {
		err = wire.Ask(ctx, p.Dial(peer), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r)
		return r, err
	}}
	switch kind {
	case "none":
		return p.Claims(arbiter.None{Asker: ask})
	case "manual":
		return p.Claims(arbiter.Manual{Asker: ask})
	case "ledger":
		return p.Claims(ledger(p, cas, ask))
	case "fence":
		peers := map[string]config.Peer{}
		for _, h := range hosts {
			peers[h.Name] = config.Peer{Name: h.Name, Fence: &config.Fence{Levels: [][]config.FenceAgent{{{Options: map[string]string{"plug": h.Name}}}}}}
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
		RetryDelay: 100 * time.Millisecond, EpochLimit: 1 << 20, PageCache: 1 << 20,
	}
	r.Ask = func(ctx context.Context, peer string, q wire.OwnerQuery) (res wire.OwnerResult, err error) {
		err = wire.Ask(ctx, p.Dial(peer), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &res)
		return res, err
	}
	if change != nil {
		change(r)
	}
	if h == m.b {
		m.pb, m.receiver = p, r
	}
	m.running.Go(func() { r.Serve(p.Context(), p.Listen()) })
}

// protect starts a protector of a domain on a host, to a peer.
func (m *seam) protect(h *simxen.Host, d *simxen.Domain, peer string, change func(*primary.Session)) (*primary.Session, chan error) {
	p := m.spawn(h)
	s := &primary.Session{
		Domain: simDomain, Instance: h.Name + "/1", Software: "sim", Offer: wire.Offer{UUID: "u", Config: []byte("{}")},
		Guest: p.Guest(d), Gates: xlft.Gates{Net: p.Gate(d)}, Arbiter: m.arbiter(p), Dial: p.Dial(peer), Peer: peer,
		DialPeer: func(name string) wire.Dialer { return p.Dial(name) }, Store: p.Store(m.records[h]), Log: zap.NewNop(),
		Settings: primary.Settings{
			Pacing: xlft.Pacing{EpochMax: simEpoch}, FailureTimeout: simSilence, AckTimeout: simAck, SuspendTimeout: simSuspend,
			RetryDelay: 100 * time.Millisecond, RetryMax: 200 * time.Millisecond, SpoolLimit: 1 << 20, PageCache: 1 << 20,
		},
		Hung: func(error) { p.Kill() },
	}
	if change != nil {
		change(s)
	}
	ended := make(chan error, 1)
	m.running.Go(func() { ended <- s.Run(p.Context()) })
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
	m.running.Wait()
}

// seams runs a case with several kinds of arbiters.
func seams(t *testing.T, f func(m *seam), kinds ...string) {
	if len(kinds) == 0 {
		t.Fatal("with no arbiter nothing is run")
	}
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

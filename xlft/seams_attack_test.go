package xlft_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// Cases that an adversarial reading found; the comments say what used to happen.

// conns remembers connections, so that a case can reset them.
type conns struct {
	mu  sync.Mutex
	all []net.Conn
}

func (c *conns) dial(d wire.Dialer) wire.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		n, err := d(ctx)
		if err == nil {
			c.mu.Lock()
			c.all = append(c.all, n)
			c.mu.Unlock()
		}
		return n, err
	}
}

func (c *conns) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.all {
		n.Close()
	}
	c.all = nil
}

const defaultFailureTimeout = time.Second // conf/xlft.toml, config.Default

func asker(m *seam, from func() wire.Dialer) arbiter.Asker {
	return arbiter.Asker{Timeout: 2 * defaultFailureTimeout, Log: zap.NewNop(), Ask: func(ctx context.Context, peer string, q wire.OwnerQuery) (r wire.OwnerResult, err error) {
		err = wire.Ask(ctx, from(), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r)
		return r, err
	}}
}

// Default timeouts, arbiter none, the network is fine all the time; only the
// session's connections are reset (a stateful firewall is reloaded). The takeover
// takes 4 s. The backup's receiver is reachable and answers OWNER after 2.5 s; the
// primary asks for 2 s only.
func TestSplitBrainReachable(t *testing.T) {
	t.Run("reset", func(t *testing.T) { splitBrainReachable(t, false) })
	t.Run("blip of 1.1s", func(t *testing.T) { splitBrainReachable(t, true) })
}

func splitBrainReachable(t *testing.T, blip bool) {
	seams(t, func(m *seam) {
		var cs conns
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(ctx context.Context, v backup.Replica) error {
				time.Sleep(4 * time.Second) // hotplug scripts, disks
				return v.Activate(ctx)
			}}
		})
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Settings.FailureTimeout = defaultFailureTimeout
			s.Settings.AckTimeout = 10 * time.Second
			s.Arbiter = arbiter.None{Asker: asker(m, func() wire.Dialer { return m.pa.Dial("B") })}
			s.Dial = cs.dial(s.Dial)
		})
		m.await(m.session, primary.Protected)
		if blip {
			m.net.CutPair("A", "B", true)
			time.Sleep(defaultFailureTimeout + 100*time.Millisecond)
			m.net.CutPair("A", "B", false)
		} else {
			cs.reset()
		}
		time.Sleep(10 * time.Second)
		a, b := m.a.Domain(simDomain), m.b.Domain(simDomain)
		if a != nil && a.Runs() && b != nil && b.Runs() {
			m.t.Errorf("both run although the receiver was reachable all the time: %+v", m.session.Status())
		}
		m.splits = false
	}, "none")
}

// The same with fence: the backup's agent needs 3 s until A is off (power
// button held); the primary asks for 2 s, gets no answer before 2.5 s, and fences
// a backup that answers. Both hosts are off.
func TestMutualFencing(t *testing.T) {
	seams(t, func(m *seam) {
		var cs conns
		fence := func(other string, crash func()) *arbiter.Fence {
			return &arbiter.Fence{
				Peers: map[string]config.Peer{other: {Name: other, Fence: oneAgent}},
				Agent: agentOf(map[string]*simxen.Host{"A": m.a, "B": m.b}[other], func() error {
					if other == "B" && m.a.Down() || other == "A" && m.b.Down() {
						return errors.New("no power")
					}
					time.Sleep(3 * time.Second) // the power controller does it, whoever lives
					crash()
					return nil
				}),
				Asker: arbiter.Asker{Log: zap.NewNop()},
			}
		}
		m.receive(m.b, func(r *backup.Receiver) { r.Arbiter = fence("A", m.a.Crash) })
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Settings.FailureTimeout = defaultFailureTimeout
			s.Settings.AckTimeout = 10 * time.Second
			f := fence("B", m.b.Crash)
			f.Asker = asker(m, func() wire.Dialer { return m.pa.Dial("B") })
			s.Arbiter = m.procs[len(m.procs)-1].Claims(f)
			s.Dial = cs.dial(s.Dial)
		})
		m.await(m.session, primary.Protected)
		cs.reset()
		time.Sleep(20 * time.Second)
		if m.a.Down() && m.b.Down() {
			m.t.Error("both hosts were fenced, though the backup answered: the domain runs nowhere")
		}
	}, "fence")
}

// An ACK of epoch 0 made a domain "protected" without a checkpoint.
func TestAckZeroMachine(t *testing.T) {
	var m primary.Machine
	m.Step(primary.Start{})
	m.Step(primary.Connected{})
	acts := m.Step(primary.Acked{Epoch: 0})
	if m.State() == primary.Protected {
		t.Errorf("protected without a checkpoint, by an ACK of epoch 0: %#v", acts)
	}
}

// the protector is killed while the backup is away.
func TestKilledWhileBackupAway(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.pb.Kill() // the receiver is away for a while
		m.await(m.session, primary.Connecting)
		m.pa.Kill() // by the OOM killer: status is not 3, systemd restarts it
		_, ended := m.protect(m.a, m.domain, "B", nil)
		time.Sleep(20 * time.Second)
		m.receive(m.b, nil) // B is back
		time.Sleep(20 * time.Second)
		select {
		case err := <-ended:
			o, _ := m.session.Result()
			m.t.Errorf("systemd's successor ended for good (%s, status 3): %v; B is back, the domain stays unprotected", o, err)
		default:
		}
	}, "cas", "none", "fence")
}

// a record of another run of the domain says paused; an operator's domain is
// paused on purpose.
func TestUnpausesAnotherRun(t *testing.T) {
	seams(t, func(m *seam) {
		if err := m.records[m.a].Save(simDomain, xlft.Ownership{Generation: 3, Role: xlft.HostPrimary, Peer: "B", UUID: "u", Exposed: true, Paused: true, Instance: "boot0/7"}); err != nil {
			m.t.Fatal(err)
		}
		m.receive(m.b, nil)
		n := 0
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Guest = &countsUnpause{s.Guest, &n} })
		time.Sleep(3 * time.Second)
		if n > 0 {
			m.t.Errorf("unpaused %d times a domain that no protector paused", n)
		}
	}, "cas")
}

type countsUnpause struct {
	xlft.Guest
	n *int
}

func (g *countsUnpause) Unpause() error { *g.n++; return g.Guest.Unpause() }

// ft-failover that comes while ft-stop ends the session is told success.
func TestFailoverAnsweredStopped(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		closing := make(chan struct{})
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Gates.Net = slowClose{s.Gates.Net, closing} })
		m.await(m.session, primary.Protected)
		go m.session.Stop(context.Background())
		<-closing
		o, err := m.session.Failover(context.Background())
		if err == nil && o != primary.SwitchedOver {
			m.t.Errorf("ft-failover: outcome %q, no error: exit status 0, and the domain did not move", o)
		}
	}, "cas")
}

type slowClose struct {
	xlft.Gate
	closing chan struct{}
}

func (g slowClose) Close() error {
	close(g.closing)
	time.Sleep(3 * time.Second) // netbuffer waits up to its gateTimeout
	return g.Gate.Close()
}

// The backup says DESTROYED while the arbiter is being asked; the arbiter
// can't be reached. The domain is paused though the only other runner gave it up.
func TestDestroyedWhileArbitrating(t *testing.T) {
	var m primary.Machine
	for _, ev := range []primary.Event{primary.Start{}, primary.Connected{}, primary.DisksSynced{}, primary.Captured{Epoch: 1}, primary.Acked{Epoch: 1},
		primary.Trigger{}, primary.Captured{Epoch: 2}, primary.BackupLost{Err: errors.New("no ack")}, primary.ReplicaDestroyed{Err: errors.New("stopping")}} {
		m.Step(ev)
	}
	if m.State() == primary.Arbitrating {
		acts := m.Step(primary.Arbitrated{Verdict: xlft.Unreachable})
		t.Errorf("the backup has said DESTROYED, and the domain is paused: %v %#v", m.State(), acts)
	}
}

// a worker of the restore hangs: no ack, but heartbeats. The primary asks the
// backup, which answers once the worker is killed (60 s in package restore; 10 s
// here). The primary fences a host that answers.
func TestFencesAnsweringBackup(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) { r.Restorer = hangingRestorer{r.Restorer} })
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Settings.FailureTimeout = defaultFailureTimeout
			f := &arbiter.Fence{
				Peers: map[string]config.Peer{"B": {Name: "B", Fence: oneAgent}},
				Agent: agentOf(m.b, func() error { m.b.Crash(); return nil }),
				Asker: asker(m, func() wire.Dialer { return m.pa.Dial("B") }),
			}
			s.Arbiter = f
		})
		m.await(m.session, primary.Protected)
		time.Sleep(30 * time.Second)
		if m.b.Down() {
			m.t.Error("B was fenced: its receiver lives and answers, only one replica's worker hung")
		}
	}, "fence")
}

type hangingRestorer struct{ backup.Restorer }

func (h hangingRestorer) Restore(ctx context.Context, o wire.Offer) (backup.Replica, error) {
	v, err := h.Restorer.Restore(ctx, o)
	return &hangingReplica{Replica: v, gone: make(chan struct{})}, err
}

type hangingReplica struct {
	backup.Replica
	n    int
	gone chan struct{}
}

func (h *hangingReplica) Checkpoint() error {
	if h.n++; h.n > 3 {
		<-h.gone
		return errors.New("killed")
	}
	return h.Replica.Checkpoint()
}

func (h *hangingReplica) Destroy() error {
	time.Sleep(10 * time.Second) // destroyTimeout is a minute
	close(h.gone)
	return h.Replica.Destroy()
}

// a peer that was greeted before a reload revoked it, and offers after.
func TestRevokedPeerOffers(t *testing.T) {
	seams(t, func(m *seam) {
		var revoked atomic.Bool
		m.receive(m.b, func(r *backup.Receiver) {
			name := r.PeerName
			r.PeerName = func(c net.Conn) string {
				if revoked.Load() {
					return "" // live.peer of an unknown fingerprint
				}
				return name(c)
			}
		})
		p := m.spawn(m.a)
		time.Sleep(10 * time.Millisecond)
		for _, greetedBefore := range []bool{true, false} {
			revoked.Store(false)
			var c *wire.Conn
			var err error
			var raw net.Conn
			if greetedBefore {
				c, _, err = wire.Open(context.Background(), p.Dial("B"), wire.KindControl, "0123456789abcdef0123456789abcdef", "sim")
			} else {
				raw, err = p.Dial("B")(context.Background()) // its TLS handshake is over
			}
			if err != nil {
				m.t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			revoked.Store(true)
			m.receiver.Revoke(context.Background(), "A")
			if raw != nil {
				c = wire.NewConn(raw)
				if _, err := wire.Greet(c, wire.KindControl, "0123456789abcdef0123456789abcdea", "sim", time.Second); err != nil {
					m.t.Fatal(err)
				}
			}
			gen := uint64(1)
			if !greetedBefore {
				gen = 2
			}
			c.WriteJSON(wire.TypeOffer, 0, wire.Offer{Domain: simDomain, UUID: "u", Config: []byte("{}"), Generation: gen, FailureTimeout: simSilence, Arbiter: "simulated"})
			if err := c.Expect(wire.TypeAccept, nil); err == nil {
				m.t.Errorf("a revoked peer's offer was accepted (greeted before the reload: %v): %+v", greetedBefore, m.receiver.Replicas())
			} else {
				m.t.Log(err)
			}
			c.Close()
			time.Sleep(time.Second)
		}
	}, "cas")
}

// withDisks has the domain's disk copied to B, by copies that record may break.
func (m *seam) withDisks(limit time.Duration, record func(xlft.DiskRecord) error) {
	m.receive(m.b, func(r *backup.Receiver) {
		r.TakeoverLimit = limit
		r.Disks = &simxen.DiskHost{P: m.procs[len(m.procs)-1], Broken: func(c backup.DiskCopy) backup.DiskCopy { return recording{c, record} }}
	})
	m.protect(m.a, m.domain, "B", func(s *primary.Session) {
		p := m.procs[len(m.procs)-1]
		s.Gates.Disks = &simxen.Disks{P: p, Domain: m.domain, To: "B"}
		s.Offer.Disks = m.domain.OfferedDisks()
		s.Offer.XenVersion = "4.17"
	})
	m.await(m.session, primary.Protected)
}

type recording struct {
	backup.DiskCopy
	record func(xlft.DiskRecord) error
}

func (r recording) Record(d xlft.DiskRecord) error {
	if err := r.record(d); err != nil {
		return err
	}
	return r.DiskCopy.Record(d)
}

// the record of a disk can't be written at a takeover that was won.
func TestDiskRecordAtTakeover(t *testing.T) {
	seams(t, func(m *seam) {
		var full atomic.Bool
		m.withDisks(0, func(xlft.DiskRecord) error {
			if full.Load() {
				return syscall.EROFS
			}
			return nil
		})
		full.Store(true)
		m.a.Crash()
		if !m.runs(m.b) {
			m.t.Errorf("the domain runs nowhere, for a record of its disk: %+v", m.receiver.Replicas())
		}
	}, "cas")
}

// TakeoverLimit does not bound finishDisks.
func TestTakeoverLimitDisks(t *testing.T) {
	seams(t, func(m *seam) {
		var hang atomic.Bool
		m.withDisks(2*time.Second, func(r xlft.DiskRecord) error {
			if hang.Load() && r.State == xlft.UpToDate {
				time.Sleep(time.Minute) // the backup's storage hangs
			}
			return nil
		})
		hang.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		m.session.Failover(ctx)
		time.Sleep(20 * time.Second)
		if !m.runs(m.a) {
			m.t.Errorf("20 s after a switch-over with TakeoverLimit 2s the domain runs nowhere: A %v, B %+v", m.session.Status().State, m.receiver.Replicas())
		}
		hang.Store(false)
		time.Sleep(2 * time.Minute)
	}, "cas", "none", "fence")
}

// A worker that hangs, with failure_timeout 2 s and none: the backup says DESTROYED on the
// control connection at once, and the domain is paused until its worker is gone.
func TestPausedByHungWorker(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) { r.Restorer = hangingRestorer{r.Restorer} })
		paused := 0
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Settings.FailureTimeout = 2 * time.Second
			ask := asker(m, func() wire.Dialer { return m.pa.Dial("B") })
			ask.Timeout = 4 * time.Second
			s.Arbiter = arbiter.None{Asker: ask}
			s.Guest = &countsPause{s.Guest, &paused}
		})
		m.await(m.session, primary.Protected)
		still := 0
		for range 200 {
			time.Sleep(100 * time.Millisecond)
			if !m.domain.Runs() {
				still++
			}
		}
		if paused > 0 {
			m.t.Errorf("a backup whose worker hung, and said DESTROYED, had the domain paused: it stood still %d ms", still*100)
		}
	}, "none")
}

type countsPause struct {
	xlft.Guest
	n *int
}

func (g *countsPause) Pause() error { *g.n++; return g.Guest.Pause() }

// B took the domain over and handed it on to C; A's record is lost.
func TestRecordLostDomainMovedOn(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.c, nil)
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		m.pa.Kill()
		if !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		onB, _ := m.protect(m.b, m.b.Domain(simDomain), "C", nil)
		m.await(onB, primary.Protected)
		if o, err := onB.Failover(context.Background()); err != nil {
			m.t.Fatal(o, err)
		}
		m.records[m.a] = records(m.t)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.FoundHolding = true })
		time.Sleep(5 * time.Second)
		a, c := m.a.Domain(simDomain), m.c.Domain(simDomain)
		rec, _ := m.records[m.b].Load(simDomain)
		m.t.Logf("A %v C %v recB %+v A status %+v", a != nil && a.Runs(), c != nil && c.Runs(), rec, m.session.Status())
		if a != nil && a.Runs() && c != nil && c.Runs() {
			m.t.Error("A and C both run; B knows that it took the domain over")
		}
		for _, v := range m.outside.Violations() {
			m.t.Error(v)
		}
		m.splits = true // now the case is over: A learns that it runs elsewhere
		m.b.Boot(simDomain, 2)
		time.Sleep(time.Second)
	}, "cas", "none")
}

// a look at the dirty pages that never returns: no checkpoint is ever taken.
func TestDirtyPagesHang(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		let := make(chan struct{})
		var hang atomic.Bool
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Guest = &hangingDirty{s.Guest, &hang, let} })
		m.await(m.session, primary.Protected)
		hang.Store(true)
		time.Sleep(time.Second)
		before := m.session.Status().Epoch
		time.Sleep(10 * time.Second)
		if st := m.session.Status(); !m.pa.Dead() {
			m.t.Errorf("the process goes on: %v epoch %d after %d, held %d", st.State, st.Epoch, before, st.HeldBytes)
		}
		close(let)
	}, "cas")
}

type hangingDirty struct {
	xlft.Guest
	hang *atomic.Bool
	let  chan struct{}
}

func (g *hangingDirty) DirtyPages() (uint64, error) {
	if g.hang.Load() {
		<-g.let
	}
	return g.Guest.DirtyPages()
}

// the local copy can't be destroyed (once): nobody tries again, the outcome
// says that it was destroyed, and its disks are not recorded as outdated.
func TestDestroyFails(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Guest = &undying{Guest: s.Guest}
		})
		m.await(m.session, primary.Protected)
		m.session.Failover(context.Background())
		time.Sleep(time.Minute)
		o, err := m.session.Result()
		if !m.pa.Dead() {
			m.t.Error("the process goes on, with a copy that it could not destroy")
		}
		m.protect(m.a, m.domain, "B", nil) // systemd's doing
		time.Sleep(time.Second)
		g := m.pa.Guest(m.domain)
		if st, _, _ := g.State(); st != xlft.GuestOver {
			m.t.Errorf("the copy is still there after a minute; the session says %q, %v", o, err)
		}
	}, "cas")
}

type undying struct {
	xlft.Guest
	tried atomic.Bool
}

func (u *undying) Destroy() error {
	if u.tried.CompareAndSwap(false, true) {
		return errors.New("xenstore is busy")
	}
	return u.Guest.Destroy()
}

// stuckDrain is a gate whose output does not leave.
type stuckDrain struct{ xlft.Gate }

func (stuckDrain) Drain(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// A switch-over that can't begin gives the loop back soon, whatever failure_timeout
// is: a watchdog would take the protector for dead.
func TestDrainIsShort(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Settings.FailureTimeout = 5 * time.Minute
			s.Gates.Net = stuckDrain{s.Gates.Net}
		})
		m.await(m.session, primary.Protected)
		begun := time.Now()
		if _, err := m.session.Failover(context.Background()); err == nil || time.Since(begun) > 20*time.Second {
			m.t.Errorf("%v after %v", err, time.Since(begun))
		}
		m.await(m.session, primary.Protected)
	}, "none")
}

// A protector dies after it has handed the domain over, and its successor can't
// reach the backup, which runs the domain: the successor does not fence it.
func TestHandedIsRemembered(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, m.cutAtTakeover)
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		m.session.Failover(ctx)
		m.pa.Kill()
		m.protect(m.a, m.domain, "B", nil)
		time.Sleep(10 * time.Second)
		if !m.runs(m.b) {
			m.t.Fatalf("B, which has the domain, does not run it: %+v", m.session.Status())
		}
		m.net.CutPair("A", "B", false)
		time.Sleep(10 * time.Second)
		if d := m.a.Domain(simDomain); d != nil && !d.Gone() {
			m.t.Errorf("A keeps its outdated copy: %+v", m.session.Status())
		}
	}, "fence")
}

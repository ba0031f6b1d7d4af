package xlft_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
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

// suspending is a Guest to which something happens when it has suspended, once armed.
type suspending struct {
	xlft.Guest
	armed *atomic.Bool
	then  func()
}

func (g suspending) Suspend(ctx context.Context) (time.Time, error) {
	asked, err := g.Guest.Suspend(ctx)
	if err == nil && g.armed.Load() {
		g.then()
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
			s.Guest = suspending{s.Guest, &armed, func() { m.b.Crash(); m.pa.Kill() }}
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

// A last checkpoint that is captured while the domain runs is not handed over.
func TestResumedByOther(t *testing.T) {
	seams(t, func(m *seam) {
		var armed atomic.Bool
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			g := s.Guest
			s.Guest = suspending{g, &armed, func() { g.Resume() }} //nolint:errcheck // then it stays suspended, and the test fails
		})
		m.await(m.session, primary.Protected)
		armed.Store(true)
		if o, err := m.session.Failover(context.Background()); err == nil {
			m.t.Errorf("the switch-over succeeded: %v", o)
		}
		armed.Store(false)
		if !m.domain.Runs() || m.runs(m.b) {
			m.t.Errorf("it runs on A: %v, on B: %v", m.domain.Runs(), m.runs(m.b))
		}
		m.await(m.session, primary.Protected)
	}, "none", "cas", "fence")
}

// A domain takes a suspend request long after its protector has given that up, and while
// its backup is dead. It runs on.
func TestSuspendsLate(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.b.Crash()
		m.await(m.session, primary.Connecting)
		m.domain.SuspendLate()
		time.Sleep(10 * time.Second)
		if !m.domain.Runs() {
			m.t.Errorf("it is still suspended: %+v", m.session.Status())
		}
	}, "none", "cas", "fence")
}

// Another program suspends the domain, as the real xl save does: nobody resumes it in that
// program's place, and nobody protects it meanwhile.
func TestSuspendedByOther(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.domain.SuspendByOther()
		for m.session.Status().State == primary.Protected {
			time.Sleep(time.Millisecond)
		}
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if st := m.session.Status(); st.State == primary.Protected {
				m.t.Fatal("it is protected while it is suspended")
			}
		}
		if why := m.session.Status().LastError; !strings.Contains(why, xlft.ErrSuspendedByOther.Error()) {
			m.t.Errorf("the status does not say why: %q", why)
		}
		if !m.domain.ResumeByOther() {
			m.t.Error("it was resumed")
		}
		m.await(m.session, primary.Protected)
	}, "none", "cas", "fence")
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
		m.await(m.session, primary.HandingOver)
		time.Sleep(simAck / 2)
		if st := m.session.Status(); st.State != primary.HandingOver || st.Protected {
			m.t.Errorf("protected, while nobody runs the domain: %+v", st)
		}
		// A limit on the next checkpoint would end it too, simEpoch+simSuspend later.
		time.Sleep(simAck/2 + simSuspend/2)
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

// lateRead is a connection with one read that is late once it is broken.
type lateRead struct {
	net.Conn
	broken *atomic.Bool
	once   *sync.Once
}

func (c lateRead) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.broken.Load() {
		c.once.Do(func() { time.Sleep(simSilence / 3) })
	}
	return n, err
}

// fails is a connection that can't be written any more once broken.
type fails struct {
	net.Conn
	broken *atomic.Bool
}

func (c fails) Write(b []byte) (int, error) {
	if c.broken.Load() {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(b)
}

// counted counts the claims.
type counted struct {
	xlft.Arbiter
	claims *atomic.Int64
}

func (c counted) Claim(ctx context.Context, q xlft.Claim) (bool, error) {
	c.claims.Add(1)
	return c.Arbiter.Claim(ctx, q)
}

// A backup that stops says so, and hangs up: that a checkpoint can't be sent any
// more is no reason to ask the arbiter before those words have come.
func TestLastWords(t *testing.T) {
	seams(t, func(m *seam) {
		var broken atomic.Bool
		var claims atomic.Int64
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			data := onDial(2, func(c net.Conn) net.Conn { return fails{c, &broken} })
			s.Dial = data(onDial(1, func(c net.Conn) net.Conn { return lateRead{c, &broken, new(sync.Once)} })(s.Dial))
			s.Arbiter = counted{s.Arbiter, &claims}
		})
		m.await(m.session, primary.Protected)
		broken.Store(true)
		m.pb.Terminate()
		m.await(m.session, primary.Connecting)
		if n := claims.Load(); n > 0 {
			m.t.Errorf("the arbiter was asked %d times", n)
		}
		if st := m.session.Status(); !strings.Contains(st.LastError, "stops receiving") {
			m.t.Errorf("the last error is %q", st.LastError)
		}
		if !m.domain.Runs() {
			m.t.Error("the domain does not run")
		}
	}, "none", "cas", "fence")
}

// A domain was taken over while its first host was away, and has moved on to a third
// one since: the host that took it over still knows that the first host's copy is
// outdated.
func TestMovedOn(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, m.cutAtTakeover)
		m.receive(m.c, nil)
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		m.session.Failover(ctx)
		m.pa.Kill()
		if !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		onB, _ := m.protect(m.b, m.b.Domain(simDomain), "C", nil)
		m.await(onB, primary.Protected)
		if o, err := onB.Failover(context.Background()); err != nil || o != primary.SwitchedOver {
			m.t.Fatalf("to C: %q, %v", o, err)
		}
		m.net.CutPair("A", "B", false)
		m.protect(m.a, m.domain, "B", nil)
		time.Sleep(10 * time.Second)
		if !m.domain.Gone() {
			m.t.Errorf("A keeps its outdated copy: %+v", m.session.Status())
		}
		if !m.runs(m.c) {
			m.t.Error("C does not run the domain")
		}
	}, "none", "fence")
}

// A question that comes while a takeover is under way is answered with what the
// takeover came to: the host that asks holds its output, and pays for each answer that
// is still undecided with a wait.
func TestAskedWhileTakingOver(t *testing.T) {
	for _, fails := range []bool{false, true} {
		seams(t, func(m *seam) {
			began := make(chan struct{}, 1)
			m.receive(m.b, func(r *backup.Receiver) {
				r.Restorer = restoring{r.Restorer, func(ctx context.Context, v backup.Replica) error {
					began <- struct{}{}
					time.Sleep(time.Second)
					if fails {
						return errors.New("hotplug script failed")
					}
					return v.Activate(ctx)
				}}
			})
			m.protect(m.a, m.domain, "B", nil)
			m.await(m.session, primary.Protected)
			m.a.Crash()
			m.a.PowerOn()
			<-began
			var r wire.OwnerResult
			q := wire.OwnerQuery{Domain: simDomain, UUID: "u", Generation: m.session.Status().Generation, Reclaim: true}
			want := wire.RoleRunning
			if fails {
				want = wire.RoleNone
			}
			if err := wire.Ask(context.Background(), m.spawn(m.a).Dial("B"), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r); err != nil || r.Role != want {
				m.t.Errorf("takeover fails %v: the answer is %+v, %v", fails, r, err)
			}
		}, "cas", "none")
	}
}

// A backup whose arbiter does not answer says why the domain runs nowhere yet, as long as
// that is so.
func TestClaimSaysWhy(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.cas.Cut("B", true)
		m.a.Crash()
		time.Sleep(5 * time.Second)
		if all := m.receiver.Replicas(); len(all) != 1 || all[0].State != backup.Claiming || !strings.Contains(all[0].LastError, "arbiter") {
			m.t.Errorf("the backup says %+v", all)
		}
		m.cas.Cut("B", false)
		if !m.runs(m.b) {
			m.t.Error("the domain runs nowhere")
		}
		for _, r := range m.receiver.Replicas() {
			if r.LastError != "" {
				m.t.Errorf("it runs the domain, and says %q", r.LastError)
			}
		}
	}, "cas")
}

// sealing tells whether an epoch is sealed.
type sealing struct {
	xlft.Gate
	sealed *atomic.Bool
}

func (g sealing) Seal(e uint64) error {
	err := g.Gate.Seal(e)
	g.sealed.Store(err == nil)
	return err
}

func (g sealing) Release(e uint64) error {
	g.sealed.Store(false)
	return g.Gate.Release(e)
}

// A protector that has read an ack stands still before it acts on it, and until the
// backup has taken the domain over: what the ack would have let out stays here.
func TestAckOfLongAgo(t *testing.T) {
	seams(t, func(m *seam) {
		var sealed atomic.Bool
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Gates.Net = sealing{s.Gates.Net, &sealed}
			s.Settings.AckTimeout = time.Minute // no other reason is found first
		})
		m.await(m.session, primary.Protected)
		var held bool
		for range 1000 {
			_, err := m.session.Pace(context.Background(), func(p xlft.Pacing) (xlft.Pacing, error) {
				// The loop stands still here.
				time.Sleep(simSilence / 10) // the ack of an epoch in flight has come
				if held = sealed.Load(); held {
					m.net.Mute("A", true)
					if !m.runs(m.b) {
						m.t.Error("B does not take over")
					}
					time.Sleep(time.Second)
				}
				return p, nil
			})
			if held || err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if !held {
			m.t.Fatal("no epoch was in flight")
		}
		m.net.Mute("A", false)
		time.Sleep(10 * time.Second)
		if !m.domain.Gone() {
			m.t.Errorf("A keeps its copy: %+v", m.session.Status())
		}
	}, "cas")
}

// A protector dies while it undoes what it did to the domain, and its successor can't
// begin: the disk is full. The domain runs, with its output, and the successor's process
// knows that it has to try again.
func TestUndoneWithNoRoom(t *testing.T) {
	seams(t, func(m *seam) {
		f, r := &roomStore{full: new(atomic.Bool)}, new(refusing)
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			f.Store, s.Store = s.Store, f
			s.Guest = refusingGuest{s.Guest, r}
		})
		m.await(m.session, primary.Protected)
		r.what.Store(refusesGuest)
		m.await(m.session, primary.Detaching)
		f.full.Store(true)
		m.pa.Kill()
		r.what.Store(refusesNothing)
		if m.domain.Runs() {
			m.t.Fatal("it is not suspended")
		}
		if o, err := m.records[m.a].Load(simDomain); err != nil || !o.Left() {
			m.t.Errorf("a successor that can't begin would give up: %+v, %v", o, err)
		}
		s, ended := m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Store = &roomStore{s.Store, f.full} })
		if err := <-ended; !errors.Is(err, syscall.ENOSPC) {
			m.t.Errorf("it ended with %v", err)
		}
		if o, _ := s.Result(); o != "" {
			m.t.Errorf("a session began: %v", o)
		}
		if !m.domain.Runs() || m.domain.Undelivered() > 0 {
			m.t.Errorf("runs %v, %d packets held", m.domain.Runs(), m.domain.Undelivered())
		}
		f.full.Store(false)
		s, ended = m.protect(m.a, m.domain, "B", nil)
		m.await(s, primary.Protected)
		m.pa.Terminate()
		<-ended
		if o, err := m.records[m.a].Load(simDomain); err != nil || o.Left() {
			m.t.Errorf("a protection that was ended left something: %+v, %v", o, err)
		}
	}, "none", "cas", "fence")
}

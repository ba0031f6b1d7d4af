package xlft_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// Calls that the kernel, the hypervisor or a disk refuses for a moment, and what is
// held while it is not known who owns the domain.

// A gate whose ReleaseAll fails once, as when the kernel is busy.
type failsOnce struct {
	xlft.Gate
	failed *atomic.Bool
}

func (g failsOnce) ReleaseAll() error {
	if g.failed.CompareAndSwap(false, true) {
		return errors.New("netlink: no buffer space available")
	}
	return g.Gate.ReleaseAll()
}

func TestReleaseAllFailsOnce(t *testing.T) {
	for _, stop := range []bool{false, true} {
		name := "backup dies"
		if stop {
			name = "ft-stop"
		}
		t.Run(name, func(t *testing.T) {
			seams(t, func(m *seam) {
				failed := new(atomic.Bool)
				failed.Store(true)
				m.receive(m.b, nil)
				m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Gates.Net = failsOnce{s.Gates.Net, failed} })
				m.await(m.session, primary.Protected)
				failed.Store(false)
				if stop {
					o, err := m.session.Stop(context.Background())
					m.t.Logf("ft-stop: %v %v", o, err)
				} else {
					m.b.Crash()
				}
				time.Sleep(3 * time.Minute)
				if !stop { // the backup is back, and nothing is wrong any more
					m.b.PowerOn()
					m.receive(m.b, nil)
					time.Sleep(3 * time.Minute)
				}
				waiting := m.domain.Undelivered()
				time.Sleep(time.Minute)
				if n := m.domain.Undelivered(); n > max(waiting, 100) {
					m.t.Errorf("the only runner's output is held for ever: %d packets wait, it was %d; %v, last error %q", n, waiting, m.session.Status().State, m.session.Status().LastError)
				}
			}, "cas")
		})
	}
}

// busyGuest can't be unpaused while busy.
type busyGuest struct {
	xlft.Guest
	busy *atomic.Bool
}

func (g busyGuest) Unpause() error {
	if g.busy.Load() {
		return errors.New("libxl: busy")
	}
	return g.Guest.Unpause()
}

// The hypervisor refuses to unpause the domain, for a moment or for long.
func TestUnpauseFails(t *testing.T) {
	for _, long := range []time.Duration{time.Second, time.Minute} {
		t.Run(long.String(), func(t *testing.T) {
			seams(t, func(m *seam) {
				busy := new(atomic.Bool)
				m.receive(m.b, nil)
				m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Guest = busyGuest{s.Guest, busy} })
				m.await(m.session, primary.Protected)
				m.cas.Cut("A", true)
				m.b.Crash()
				m.await(m.session, primary.Blocked)
				busy.Store(true)
				time.AfterFunc(long, func() { busy.Store(false) })
				m.cas.Cut("A", false)
				time.Sleep(2 * long)
				if !m.domain.Runs() {
					m.t.Errorf("the only runner stays paused: %v, last error %q, holding %v", m.session.Status().State, m.session.Status().LastError, m.session.Status().Holding)
				}
			}, "cas")
		})
	}
}

// A gate that is bypassed while the arbiter is asked.
func TestBypassWhileArbitrating(t *testing.T) {
	seams(t, func(m *seam) {
		bypassed := new(atomic.Bool)
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Gates.Net = bypassedGate{s.Gates.Net, bypassed}
			s.Arbiter = slowArbiter{s.Arbiter, 30 * time.Second}
		})
		m.await(m.session, primary.Protected)
		m.b.Crash()
		m.await(m.session, primary.Arbitrating)
		bypassed.Store(true)
		time.Sleep(20 * time.Second)
		st := m.session.Status()
		if m.domain.Runs() && st.State == primary.Arbitrating {
			m.t.Errorf("nothing holds the domain's output for 20 s while it is not decided who owns it; it runs, and the status says only %q", st.LastError)
		}
		bypassed.Store(false)
		time.Sleep(30 * time.Second)
	}, "cas")
}

type slowArbiter struct {
	xlft.Arbiter
	takes time.Duration
}

func (s slowArbiter) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
	}
	return s.Arbiter.Claim(ctx, c)
}

// A fence agent that takes two minutes until the host is off: the gate fills meanwhile.
func TestGateFullWhileArbitrating(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Arbiter = slowArbiter{s.Arbiter, 3 * time.Minute} })
		m.await(m.session, primary.Protected)
		m.b.Crash()
		m.await(m.session, primary.Arbitrating)
		time.Sleep(2*time.Minute + 30*time.Second)
		st := m.session.Status()
		if st.HeldLimit > 0 && st.HeldBytes >= st.HeldLimit && m.domain.Runs() {
			m.t.Errorf("%v: the gate holds %d bytes of %d, and the domain is not kept from sending", st.State, st.HeldBytes, st.HeldLimit)
		}
		time.Sleep(2 * time.Minute)
		if n := m.domain.Undelivered(); n > 100 {
			m.t.Errorf("%d packets of the only runner were lost", n)
		}
	}, "cas")
}

// Resume fails once when the domain is taken back from a switch-over that failed; then
// the backup dies.
type resumeFailsOnce struct {
	xlft.Guest
	arm *atomic.Bool
}

func (g resumeFailsOnce) Resume() error {
	if g.arm.CompareAndSwap(true, false) {
		return errors.New("libxc: busy")
	}
	return g.Guest.Resume()
}

func TestResumeFailsAfterSwitchOver(t *testing.T) {
	seams(t, func(m *seam) {
		arm := new(atomic.Bool)
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(context.Context, backup.Replica) error {
				arm.Store(true)
				time.AfterFunc(20*time.Millisecond, m.pb.Kill)
				return errors.New("hotplug script failed")
			}}
		})
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Guest = resumeFailsOnce{s.Guest, arm} })
		m.await(m.session, primary.Protected)
		_, err := m.session.Failover(context.Background())
		time.Sleep(time.Minute)
		if !m.domain.Runs() {
			m.t.Errorf("the only runner stays suspended (%v): %v, last error %q", err, m.session.Status().State, m.session.Status().LastError)
		}
	}, "cas", "fence", "none")
}

// B takes the domain over while its records can't be written, and A does not hear of
// it. Then B protects it to C and hands it on.
func TestUnrecordedTakeoverForgotten(t *testing.T) {
	seams(t, func(m *seam) {
		f := &roomStore{full: new(atomic.Bool)}
		m.receive(m.b, func(r *backup.Receiver) { f.Store, r.Store = r.Store, f; m.cutAtTakeover(r) })
		m.receive(m.c, nil)
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		f.full.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		m.session.Failover(ctx)
		cancel()
		if !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		f.full.Store(false)
		onB, _ := m.protect(m.b, m.b.Domain(simDomain), "C", nil)
		m.await(onB, primary.Protected)
		if o, err := onB.Failover(context.Background()); err != nil {
			m.t.Fatal(o, err)
		}
		m.net.CutPair("A", "B", false)
		time.Sleep(10 * time.Second)
		rec, _ := m.records[m.b].Load(simDomain)
		if d := m.a.Domain(simDomain); d != nil && d.Runs() {
			m.t.Errorf("A runs its outdated copy, and C runs the domain; B's record %+v", rec)
		}
	}, "fence")
}

// A record is lost while its gate holds, the backup can't be asked, and the protector
// pauses the domain. It is killed, and its successor hears that this host is alone.
func TestPauseOfLostRecordForgotten(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.b.Crash()
		m.pa.Kill()
		m.records[m.a] = records(m.t)
		var over atomic.Bool
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.FoundHolding = true
			d, alive := s.Dial, m.spawn(m.c).Dial("B")
			s.Dial = func(ctx context.Context) (net.Conn, error) {
				if over.Load() { // so that the session of the killed process ends, too
					return alive(ctx)
				}
				return d(ctx)
			}
		})
		m.await(m.session, primary.Blocked)
		rec, _ := m.records[m.a].Load(simDomain)
		m.pa.Kill()
		m.b.PowerOn()
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.FoundHolding = true })
		time.Sleep(time.Minute)
		if !m.domain.Runs() {
			m.t.Errorf("the only runner stays paused: %v, last error %q; the record of the pause was %+v", m.session.Status().State, m.session.Status().LastError, rec)
			m.domain.Thaw()
		}
		over.Store(true)
		time.Sleep(10 * time.Second)
	}, "none", "fence")
}

// The kernel answers nothing for a second, while an operator stops the protection.
type busyGate struct {
	xlft.Gate
	busy *atomic.Bool
}

func (g busyGate) ReleaseAll() error {
	if g.busy.Load() {
		return errors.New("netlink: no buffer space available")
	}
	return g.Gate.ReleaseAll()
}

func (g busyGate) Close() error {
	if g.busy.Load() {
		return errors.New("netlink: no buffer space available")
	}
	return g.Gate.Close()
}

// An operator's stop is one only if the domain's output flows afterwards.
func TestStopWhileGateIsBusy(t *testing.T) {
	for _, busyFor := range []time.Duration{time.Second, 7 * time.Second, time.Hour} {
		long := busyFor == time.Hour
		seams(t, func(m *seam) {
			busy := new(atomic.Bool)
			m.receive(m.b, nil)
			m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Gates.Net = busyGate{s.Gates.Net, busy} })
			m.await(m.session, primary.Protected)
			busy.Store(true)
			over := time.AfterFunc(busyFor, func() { busy.Store(false) })
			defer over.Stop()
			o, err := m.session.Stop(context.Background())
			if long && (err == nil || o != primary.Failed || !strings.Contains(err.Error(), "ft-start")) {
				m.t.Errorf("ft-stop: %q, %v: and the output is held", o, err)
			}
			if !long && (err != nil || o != primary.Stopped) {
				m.t.Errorf("ft-stop: %q, %v", o, err)
			}
			if !long && m.domain.Undelivered() > 20 {
				m.t.Error("the output is held")
			}
			busy.Store(false)
			// As the operator is told.
			m.protect(m.a, m.domain, "B", nil)
			m.await(m.session, primary.Protected)
		}, "cas")
	}
}

// A failing is a replica that fails when a test says so.
type failing struct {
	backup.Restorer
	failed chan error
}

type failingReplica struct {
	backup.Replica
	failed chan error
}

func (f failing) Restore(ctx context.Context, o wire.Offer) (backup.Replica, error) {
	v, err := f.Restorer.Restore(ctx, o)
	return failingReplica{v, f.failed}, err
}

func (f failingReplica) Failed() <-chan error { return f.failed }

// The replica fails, and the record of it hangs: the domain is not called protected
// meanwhile.
func TestReplicaFailsAndRecordHangs(t *testing.T) {
	seams(t, func(m *seam) {
		hang := new(atomic.Bool)
		failed := make(chan error, 1)
		m.receive(m.b, func(r *backup.Receiver) { r.Restorer = failing{r.Restorer, failed} })
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Store = hangStore{s.Store, hang} })
		m.await(m.session, primary.Protected)
		hang.Store(true)
		failed <- errors.New("xc_domain_restore: no memory")
		time.Sleep(500 * time.Millisecond)
		if st := m.session.Status(); st.Protected {
			m.t.Errorf("it says \"protected\": %+v", st)
		}
		hang.Store(false)
	}, "cas")
}

// The record is lost, the gate holds, and another backup was chosen: the host that
// runs the domain is not asked.
func TestRecordLostOtherBackup(t *testing.T) {
	for _, cut := range []bool{false, true} {
		seams(t, func(m *seam) {
			m.receive(m.c, nil)
			m.begin()
			m.pa.Kill()
			if !m.runs(m.b) {
				m.t.Fatal("B does not run the domain")
			}
			m.records[m.a] = records(m.t)
			m.net.CutPair("A", "B", cut)
			m.protect(m.a, m.domain, "C", func(s *primary.Session) { s.FoundHolding, s.Peers = true, []string{"B", "C"} })
			time.Sleep(5 * time.Second)
			if a := m.a.Domain(simDomain); a != nil && a.Runs() {
				m.t.Errorf("A and B both run; B can't be reached: %v: %v", cut, m.session.Status().State)
			}
			m.net.CutPair("A", "B", false)
			time.Sleep(5 * time.Second)
			if a := m.a.Domain(simDomain); a != nil && !a.Gone() {
				m.t.Errorf("A keeps its copy: %+v", m.session.Status())
			}
		}, "none", "cas")
	}
}

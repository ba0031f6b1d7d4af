package xlft_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// When checkpoints are taken, in each mode, and what becomes of a domain that waits for
// an ack, suspended.

// inMode puts a session into a mode, with epochs so long that only the mode ends them.
func inMode(mode xlft.Mode) func(*primary.Session) {
	return func(s *primary.Session) {
		s.Events = eventsOf(s.Gates.Net)
		s.Settings.Pacing = xlft.Pacing{Mode: mode, EpochMin: 5 * time.Millisecond, EpochMax: 10 * time.Second, WindowMax: 100 * time.Millisecond, RunShare: 0.5}
	}
}

// begin has A's domain protected by B, in a mode.
func (m *seam) beginIn(mode xlft.Mode, change func(*primary.Session)) {
	m.t.Helper()
	m.receive(m.b, nil)
	m.protect(m.a, m.domain, "B", func(s *primary.Session) {
		inMode(mode)(s)
		if change != nil {
			change(s)
		}
	})
	m.await(m.session, primary.Protected)
}

// A domain that only computes takes no checkpoints but those of epoch_max; the first
// packet after a silence is heard at once, and so is the next one.
func TestSilence(t *testing.T) {
	for _, mode := range []xlft.Mode{xlft.ModeEvent, xlft.ModeStrict} {
		t.Run(string(mode), func(t *testing.T) {
			seams(t, func(m *seam) {
				m.domain.Hush(true)
				m.beginIn(mode, nil)
				time.Sleep(35 * time.Second)
				st := m.session.Status()
				if st.Reasons[primary.WhyInterval] != 3 || st.Checkpoints != 4 {
					m.t.Errorf("a silent domain: %d checkpoints, %v", st.Checkpoints, st.Reasons)
				}
				m.outside.Prompt(60 * time.Millisecond)
				m.domain.Hush(false)
				time.Sleep(2 * time.Second)
				m.outside.Prompt(0)
				st = m.session.Status()
				var sum uint64
				for _, n := range st.Reasons {
					sum += n
				}
				if st.Reasons[primary.WhyEvent] < 30 || sum != st.Checkpoints {
					m.t.Errorf("%d checkpoints, %v", st.Checkpoints, st.Reasons)
				}
			}, "cas")
		})
	}
}

// In each mode the outside hears a domain that speaks all the time as soon as it should.
func TestPromptness(t *testing.T) {
	for mode, bound := range map[xlft.Mode]time.Duration{xlft.ModeEvent: 40 * time.Millisecond, xlft.ModeStrict: 30 * time.Millisecond, xlft.ModeInterval: 200 * time.Millisecond} {
		t.Run(string(mode), func(t *testing.T) {
			seams(t, func(m *seam) {
				m.beginIn(mode, func(s *primary.Session) {
					if mode == xlft.ModeInterval {
						s.Settings.Pacing.EpochMax = 150 * time.Millisecond
					}
				})
				m.outside.Prompt(bound)
				time.Sleep(5 * time.Second)
				m.outside.Prompt(0)
			}, "cas")
		})
	}
}

// Strict: the domain takes no step from its suspension until its output has been let
// out, however long the backup takes, and its pause says how long it waited.
func TestStrictStandsStill(t *testing.T) {
	seams(t, func(m *seam) {
		const slow = 200 * time.Millisecond
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer.(*simxen.Restorer).Slow = slow
		})
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			inMode(xlft.ModeStrict)(s)
			s.Gates.Net = standing{s.Gates.Net, m.domain, m.outside, new(atomic.Uint64)}
		})
		m.await(m.session, primary.Protected)
		before := m.domain.Steps()
		time.Sleep(20 * time.Second)
		st := m.session.Status()
		p := st.PauseMedian
		if sum := p.Suspend + p.Seal + p.Capture + p.Ack + p.Resume; st.Checkpoints < 50 || p.Ack < slow/2 || p.Total < sum-10*time.Millisecond || p.Total > sum+10*time.Millisecond {
			m.t.Errorf("%d checkpoints, pause %+v", st.Checkpoints, p)
		}
		if m.domain.Steps() == before {
			m.t.Error("the domain does not run on at all")
		}
	}, "cas")
}

// waiting has the domain wait for an ack, suspended, and returns once it does.
func (m *seam) waiting(r *holdBack) {
	m.t.Helper()
	r.hold.Store(true)
	for range 1000 {
		if st, _, err := m.session.Guest.State(); err == nil && st == xlft.GuestSuspended {
			time.Sleep(50 * time.Millisecond)
			if st, _, _ := m.session.Guest.State(); st == xlft.GuestSuspended {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
	m.t.Fatal("the domain does not wait")
}

// holdBack is a backup's restore that takes no epoch while hold is set: the ack of the
// epoch after it waits for that.
type holdBack struct {
	backup.Restorer
	hold atomic.Bool
}

type heldBack struct {
	backup.Replica
	r *holdBack
}

func (r *holdBack) Restore(ctx context.Context, o wire.Offer) (backup.Replica, error) {
	v, err := r.Restorer.Restore(ctx, o)
	return heldBack{v, r}, err
}

func (v heldBack) Write(p []byte) (int, error) {
	for v.r.hold.Load() {
		time.Sleep(time.Millisecond)
	}
	return v.Replica.Write(p)
}

// strictWaits begins a protection in the mode strict, and has the domain wait.
func (m *seam) strictWaits() *holdBack {
	m.t.Helper()
	r := &holdBack{}
	m.receive(m.b, func(b *backup.Receiver) { r.Restorer, b.Restorer = b.Restorer, r })
	m.protect(m.a, m.domain, "B", func(s *primary.Session) {
		inMode(xlft.ModeStrict)(s)
		s.Arbiter = &lateArbiter{Arbiter: s.Arbiter}
	})
	m.await(m.session, primary.Protected)
	m.waiting(r)
	return r
}

// lateArbiter takes its time.
type lateArbiter struct {
	xlft.Arbiter
	by atomic.Int64
}

func (a *lateArbiter) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	time.Sleep(time.Duration(a.by.Load()))
	return a.Arbiter.Claim(ctx, c)
}

// What ends the wait of a strict checkpoint, if not its ack.
func TestStrictWaits(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *seam, r *holdBack)
		on   func(m *seam) *simxen.Host // that runs the domain in the end
	}{
		{"the ack comes late", func(m *seam, r *holdBack) {
			r.hold.Store(false)
			time.Sleep(time.Second)
			if st := m.session.Status(); !st.Protected {
				m.t.Errorf("not protected: %+v", st)
			}
		}, func(m *seam) *simxen.Host { return m.a }},
		{"the primary dies", func(m *seam, r *holdBack) { m.a.Crash(); r.hold.Store(false) }, func(m *seam) *simxen.Host { return m.b }},
		{"the backup dies", func(m *seam, r *holdBack) { m.b.Crash() }, func(m *seam) *simxen.Host { return m.a }},
		{"the receiver is killed", func(m *seam, r *holdBack) { m.pb.Kill() }, func(m *seam) *simxen.Host { return m.a }},
		{"the backup is heard and acks nothing", func(m *seam, r *holdBack) { time.Sleep(2 * simAck) }, func(m *seam) *simxen.Host { return m.a }},
		{"the backup has lost the restore's worker", func(m *seam, r *holdBack) { m.pb.Terminate(); r.hold.Store(false) }, func(m *seam) *simxen.Host { return m.a }},
		{"the protector and the backup die", func(m *seam, r *holdBack) {
			m.b.Crash()
			m.pa.Kill()
			m.protect(m.a, m.domain, "B", nil)
		}, func(m *seam) *simxen.Host { return m.a }},
		{"an operator stops the protection", func(m *seam, r *holdBack) {
			if o, err := m.session.Stop(context.Background()); o != primary.Stopped {
				m.t.Errorf("%v, %v", o, err)
			}
		}, func(m *seam) *simxen.Host { return m.a }},
		{"an operator changes the mode", func(m *seam, r *holdBack) {
			m.pace(xlft.ModeEvent)
			before := m.domain.Steps()
			time.Sleep(100 * time.Millisecond)
			if m.domain.Steps() == before {
				m.t.Error("it waits on")
			}
			r.hold.Store(false)
		}, func(m *seam) *simxen.Host { return m.a }},
		{"an operator asks for a switch-over", func(m *seam, r *holdBack) {
			asked := make(chan error, 1)
			go func() {
				_, err := m.session.Failover(context.Background())
				asked <- err
			}()
			time.Sleep(50 * time.Millisecond)
			r.hold.Store(false)
			if err := <-asked; err != nil {
				m.t.Error(err)
			}
		}, func(m *seam) *simxen.Host { return m.b }},
		{"the gate fails", func(m *seam, r *holdBack) {
			m.session.Gates.Net.(*brokenGate).broken.Store(true)
			time.Sleep(200 * time.Millisecond)
			m.session.Gates.Net.(*brokenGate).broken.Store(false)
			r.hold.Store(false)
		}, func(m *seam) *simxen.Host { return m.a }},
	} {
		t.Run(c.name, func(t *testing.T) {
			seams(t, func(m *seam) {
				r := &holdBack{}
				m.receive(m.b, func(b *backup.Receiver) { r.Restorer, b.Restorer = b.Restorer, r })
				m.protect(m.a, m.domain, "B", func(s *primary.Session) {
					inMode(xlft.ModeStrict)(s)
					s.Gates.Net = &brokenGate{Gate: s.Gates.Net}
				})
				m.await(m.session, primary.Protected)
				m.waiting(r)
				c.do(m, r)
				if h := c.on(m); !m.runs(h) {
					m.t.Errorf("the domain does not run on %s: %+v", h.Name, m.session.Status())
				}
				r.hold.Store(false)
				time.Sleep(10 * time.Second)
				if h := c.on(m); h == m.a && m.domain.Undelivered() > 30 && m.session.Status().State != primary.Blocked {
					m.t.Errorf("%d packets are held or lost: %+v", m.domain.Undelivered(), m.session.Status())
				}
			}, "cas", "fence")
		})
	}
}

// A strict domain that can't be resumed for a while is no reason to end the process: a
// backup whose connection breaks would have its primary's host fenced.
func TestStrictResumeRefused(t *testing.T) {
	seams(t, func(m *seam) {
		r := new(refusing)
		idle := new(atomic.Bool) // nothing asked for a checkpoint, as if the trigger hung
		m.beginIn(xlft.ModeStrict, func(s *primary.Session) {
			s.Guest = refusingGuest{s.Guest, r}
			s.Hung = func(err error) { idle.Store(idle.Load() || strings.Contains(err.Error(), "no checkpoint was begun")) }
			s.Settings.Pacing.EpochMax = simEpoch
		})
		r.what.Store(refusesGuest)
		time.Sleep(simEpoch + simSuspend + simAck + 50*time.Millisecond)
		r.what.Store(refusesNothing)
		if !m.runs(m.a) {
			m.t.Fatalf("the domain does not run on: %+v", m.session.Status())
		}
		m.await(m.session, primary.Protected)
		if st := m.session.Status(); idle.Load() || m.a.Down() || !strings.Contains(st.LastError, "resume: busy") {
			m.t.Errorf("idle %v, A down %v, last error %q", idle.Load(), m.a.Down(), st.LastError)
		}
	}, "cas", "fence", "none")
}

// brokenGate can't say what it holds while broken.
type brokenGate struct {
	xlft.Gate
	broken atomic.Bool
}

func (g *brokenGate) Held() (uint64, uint64, error) {
	if g.broken.Load() {
		return 0, 0, errors.New("netlink is gone")
	}
	return g.Gate.Held()
}

// pace changes the mode, as xl ft-set does.
func (m *seam) pace(mode xlft.Mode) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p, err := m.session.Pace(ctx, func(p xlft.Pacing) (xlft.Pacing, error) { p.Mode = mode; return p, nil })
	if err != nil || p.Mode != mode {
		m.t.Errorf("mode %s: %+v, %v", mode, p, err)
	}
}

// paceAll changes the mode to each, and to the first again.
func (m *seam) paceAll() {
	for _, mode := range []xlft.Mode{xlft.ModeStrict, xlft.ModeInterval, xlft.ModeStrict, xlft.ModeEvent, xlft.ModeStrict} {
		m.pace(mode)
	}
}

// ft-set in each state: nothing else changes, and what follows follows.
func TestPaceInEachState(t *testing.T) {
	for state, reach := range map[primary.State]func(m *seam){
		primary.Connecting: func(m *seam) {
			m.protect(m.a, m.domain, "B", func(s *primary.Session) { inMode(xlft.ModeEvent)(s); s.Proven = true })
			m.await(m.session, primary.Connecting)
			m.paceAll()
			m.receive(m.b, nil)
		},
		primary.Syncing: func(m *seam) {
			r := &holdBack{}
			r.hold.Store(true)
			m.receive(m.b, func(b *backup.Receiver) { r.Restorer, b.Restorer = b.Restorer, r })
			m.protect(m.a, m.domain, "B", inMode(xlft.ModeEvent))
			m.await(m.session, primary.Syncing)
			m.paceAll()
			r.hold.Store(false)
		},
		primary.Protected: func(m *seam) {
			m.beginIn(xlft.ModeEvent, nil)
			for range 30 {
				m.paceAll()
				time.Sleep(7 * time.Millisecond)
			}
		},
		primary.Recovering: func(m *seam) {
			m.beginIn(xlft.ModeStrict, nil)
			m.b.Crash() // it can't be asked, and claims nothing
			m.pa.Kill()
			m.protect(m.a, m.domain, "B", inMode(xlft.ModeEvent))
			m.await(m.session, primary.Recovering)
			m.paceAll()
		},
		primary.Arbitrating: func(m *seam) {
			r := m.strictWaits()
			m.session.Arbiter.(*lateArbiter).by.Store(int64(time.Second))
			m.b.Crash()
			m.await(m.session, primary.Arbitrating)
			m.paceAll()
			r.hold.Store(false)
		},
		primary.Blocked: func(m *seam) {
			r := m.strictWaits()
			m.cas.Cut("A", true)
			m.cas.Cut("B", true)
			m.net.Cut(true)
			m.await(m.session, primary.Blocked)
			m.paceAll()
			m.b.Crash()
			r.hold.Store(false)
			m.cas.Cut("A", false)
			m.net.Cut(false)
		},
		primary.Ending: func(m *seam) {
			r := m.strictWaits()
			m.net.Mute("B", true) // its answer does not come
			go m.session.Stop(context.Background())
			m.await(m.session, primary.Ending)
			m.paceAll()
			m.net.Mute("B", false)
			r.hold.Store(false)
		},
		primary.HandingOver: func(m *seam) {
			r := m.strictWaits()
			go m.session.Failover(context.Background())
			r.hold.Store(false)
			m.await(m.session, primary.HandingOver)
			m.paceAll()
		},
	} {
		t.Run(state.String(), func(t *testing.T) {
			seams(t, func(m *seam) {
				reach(m)
				on := m.a
				if state == primary.HandingOver {
					on = m.b
				}
				if !m.runs(on) {
					m.t.Errorf("the domain does not run on %s: %+v", on.Name, m.session.Status())
				}
				time.Sleep(10 * time.Second)
				st := m.session.Status()
				if protected := state == primary.Connecting || state == primary.Syncing || state == primary.Protected; st.Protected != protected {
					m.t.Errorf("protected %v: %+v", st.Protected, st)
				}
				if st.Pacing.Mode != xlft.ModeStrict {
					m.t.Errorf("the mode is %s", st.Pacing.Mode)
				}
			}, "cas")
		})
	}
}

// What is refused changes nothing, and a session that has ended takes nothing.
func TestPaceRefused(t *testing.T) {
	seams(t, func(m *seam) {
		m.beginIn(xlft.ModeEvent, nil)
		was := m.session.Status().Pacing
		no := errors.New("no")
		if _, err := m.session.Pace(context.Background(), func(p xlft.Pacing) (xlft.Pacing, error) {
			p.Mode = xlft.ModeStrict
			return p, no
		}); !errors.Is(err, no) {
			m.t.Errorf("%v", err)
		}
		if now := m.session.Status().Pacing; now != was {
			m.t.Errorf("%+v, it was %+v", now, was)
		}
		m.session.Stop(context.Background())
		p, err := m.session.Pace(context.Background(), func(p xlft.Pacing) (xlft.Pacing, error) { return p, nil })
		if err == nil {
			m.t.Errorf("after the end: %+v", p)
		}
	}, "cas")
}

// An epoch that an operator makes longer is no wait that has a limit.
func TestLongerEpochs(t *testing.T) {
	seams(t, func(m *seam) {
		m.domain.Hush(true)
		m.beginIn(xlft.ModeEvent, func(s *primary.Session) { s.Settings.Pacing.EpochMax = 100 * time.Millisecond })
		for m.session.Status().Epoch < 5 {
			time.Sleep(5 * time.Millisecond)
		}
		if _, err := m.session.Pace(context.Background(), func(p xlft.Pacing) (xlft.Pacing, error) { p.EpochMax = time.Minute; return p, nil }); err != nil {
			m.t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		if st := m.session.Status(); !st.Protected || st.LastError != "" {
			m.t.Errorf("%+v", st)
		}
	}, "cas")
}

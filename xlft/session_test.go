package xlft_test

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/primary"

	"xlft/xlft/wire"
)

// onDial puts something around the n-th connection: a session's first is its
// control connection, its second the one for data.
func onDial(n int64, wrap func(net.Conn) net.Conn) func(wire.Dialer) wire.Dialer {
	var dials atomic.Int64
	return func(d wire.Dialer) wire.Dialer {
		return func(ctx context.Context) (net.Conn, error) {
			c, err := d(ctx)
			if dials.Add(1) == n && err == nil {
				return wrap(c), nil
			}
			return c, err
		}
	}
}

// A lateConn's Write returns long after the bytes were sent.
type lateConn struct {
	net.Conn
	by time.Duration
}

func (c lateConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	time.Sleep(c.by)
	return n, err
}

// TestAckBeforeSent: the backup's ack of the first checkpoint arrives, and the
// checkpoint's output is released, before the Write that sent the checkpoint
// has returned. Checkpoints must continue.
func TestAckBeforeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const late = 30 * time.Millisecond
		s := newSim(t, 2, variant{
			storage: mirrored,
			dial:    onDial(2, func(c net.Conn) net.Conn { return lateConn{c, late} }), // the data connection
			net:     func(g xlft.Gate) xlft.Gate { return lateOutput{g, 2 * late} },
		}, zap.NewNop())
		s.receive()
		s.protect()
		s.awaitProtected()
		time.Sleep(20 * simEpoch)
		if st := s.session.Status(); !st.Protected || st.Epoch < 3 {
			t.Errorf("after 20 times epoch_max: %+v", st)
		}
		s.endWell()
	})
}

type lateOutput struct {
	xlft.Gate
	by time.Duration
}

func (o lateOutput) Release(e uint64) error {
	time.Sleep(o.by)
	return o.Gate.Release(e)
}

// A hangingGuest calls hang while it captures a checkpoint.
type hangingGuest struct {
	xlft.Guest
	at   int // number of that checkpoint
	hang func(context.Context)
}

func (g *hangingGuest) Save(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	n, captured := 0, hooks.Captured
	hooks.Captured = func() error {
		if n++; n == g.at {
			g.hang(ctx)
		}
		return captured()
	}
	return g.Guest.Save(ctx, dst, hooks)
}

// hangs runs until the capture of a checkpoint hangs, once.
func hangs(t *testing.T, at int) (s *sim, goOn func()) {
	g := &hangingGuest{at: at}
	hangs, let := make(chan struct{}), make(chan struct{})
	g.hang = func(context.Context) {
		close(hangs)
		<-let
		g.at = 0
	}
	s = newSim(t, 2, variant{storage: mirrored, guest: func(inner xlft.Guest) xlft.Guest {
		g.Guest = inner
		return g
	}}, zap.NewNop())
	s.receive()
	s.protect()
	<-hangs
	return s, func() { close(let) }
}

// TestCaptureHangs: while a capture hangs the domain does not count as
// protected.
func TestCaptureHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, goOn := hangs(t, 4)
		time.Sleep(simSuspend + simAck/2)
		if st := s.session.Status(); !st.Protected {
			t.Errorf("given up too early: %+v", st)
		}
		time.Sleep(simAck)
		if st := s.session.Status(); st.Protected || st.LastError == "" {
			t.Errorf("a capture hangs: %+v", st)
		}
		goOn()
		s.awaitProtected()
		s.endWell()
		if s.outside.Takeovers > 0 {
			t.Errorf("%d takeovers", s.outside.Takeovers)
		}
	})
}

// TestFirstCaptureHangs: until its first checkpoint is captured, the primary
// continues alone without asking the arbiter: the backup must not hold that
// checkpoint complete.
func TestFirstCaptureHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, goOn := hangs(t, 1)
		time.Sleep(simEpoch)
		s.net.Cut(true)
		time.Sleep(4 * simSilence)
		goOn()
		time.Sleep(4 * simSilence)
		if d := s.b.Domain(simDomain); d != nil {
			t.Error("the backup runs the domain")
		}
		if !s.domain.Runs() {
			t.Error("the primary does not")
		}
		s.net.Cut(false)
		s.endWell()
	})
}

// TestBackupKeepsReplica: a backup that sends heartbeats and does not do what
// it was asked counts as lost.
func TestBackupKeepsReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var control *deafConn
		s := newSim(t, 2, variant{storage: mirrored, dial: onDial(1, func(c net.Conn) net.Conn {
			control = &deafConn{Conn: c}
			return control
		})}, zap.NewNop())
		s.receive()
		s.protect()
		s.awaitProtected()
		control.to.Store(int64(wire.TypeDestroy))
		s.primary.Terminate()
		time.Sleep(simAck / 2)
		if st := s.session.Status(); st.State != primary.Ending {
			t.Errorf("%+v", st)
		}
		s.endWell()
	})
}

// A deafConn does not pass on frames of one type, which have no body.
type deafConn struct {
	net.Conn
	to atomic.Int64
}

func (c *deafConn) Write(b []byte) (int, error) {
	if deaf := c.to.Load(); deaf > 0 && int64(b[0]) == deaf {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// busySim runs a domain that writes so many pages every 10 ms, until the test
// ends it.
func busySim(t *testing.T, v variant, pages int) (s *sim, end func()) {
	v.storage = mirrored
	s = newSim(t, 2, v, zap.NewNop())
	s.receive()
	s.protect()
	s.awaitProtected()
	stop := make(chan struct{})
	s.wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				s.domain.Write(pages)
			}
		}
	})
	return s, func() {
		close(stop)
		s.endWell()
	}
}

// TestHeldForBackup: a domain that writes more than the next checkpoint can
// carry, while the backup is slow, waits and stays protected.
func TestHeldForBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const memory = 1 << 20 // 255 pages
		s, end := busySim(t, variant{pages: 2000, memory: memory, slow: 6 * simEpoch}, 12)
		held := false
		for range 200 {
			time.Sleep(simEpoch / 2)
			st := s.session.Status()
			if !st.Protected {
				t.Errorf("%+v", st)
				break
			}
			held = held || st.Holding
		}
		st := s.session.Status()
		if !held || st.Holds < 5 || st.HeldTime < simEpoch || st.Overflows > 0 || st.Epoch < 10 {
			t.Errorf("was seen to wait: %v; %+v", held, st)
		}
		t.Logf("%d checkpoints; waited %d times, %v in all", st.Checkpoints, st.Holds, st.HeldTime)
		end()
	})
}

// TestOverflowEnds: a domain that writes more between two looks than a checkpoint
// can carry loses its protection, but not again and again.
func TestOverflowEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const memory = 1 << 20 // 255 pages
		s, end := busySim(t, variant{pages: 2000, memory: memory}, 80)
		time.Sleep(300 * simEpoch)
		s.awaitProtected()
		// Each loss halves what the domain may write. If none did there would be 74.
		st := s.session.Status()
		if st.Generation < 2 || st.Generation > 2+5 {
			t.Errorf("its protection was lost %d times: %+v", st.Generation-1, st)
		}
		t.Logf("%d generations, %d checkpoints", st.Generation, st.Checkpoints)
		end()
	})
}

// A forgetfulStore does not keep that the domain was paused.
type forgetfulStore struct{ xlft.Store }

func (s forgetfulStore) Save(domain string, o xlft.Ownership) error {
	o.Paused = false
	return s.Store.Save(domain, o)
}

// TestPauseUndone: the protector and the backup die while the domain waits for
// the backup. The successor lets the domain run on, unless an operator has paused
// it too: that pause stays.
func TestPauseUndone(t *testing.T) {
	for _, c := range []struct {
		name           string
		operator, runs bool
		store          func(xlft.Store) xlft.Store
	}{
		{"as it is", false, true, nil},
		{"paused by an operator too", true, false, nil},
		{"the record is lost, and this test notices", false, false, func(s xlft.Store) xlft.Store { return forgetfulStore{s} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, end := busySim(t, variant{pages: 2000, memory: 1 << 20, slow: 6 * simEpoch, store: c.store}, 12)
				for waited := 0; !s.session.Status().Holding; waited++ {
					if waited == 1000 {
						t.Error("the domain is not held")
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
				if c.operator {
					s.domain.Freeze()
				}
				s.b.Crash()
				protector, _, _ := s.now()
				protector.Kill()
				s.protect()
				time.Sleep(wire.OwnerTimeout + 10*simEpoch)
				if s.domain.Runs() != c.runs {
					t.Errorf("the domain runs: %v", !c.runs)
				}
				if !c.runs {
					s.domain.Thaw()
				}
				if !s.domain.Runs() {
					t.Error("the domain stays paused")
				}
				end()
			})
		})
	}
}

package wire_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"xlft/xlft/wire"
)

// controls returns the two ends of a session's control connection.
func controls(silence time.Duration) (a, b *wire.Control, rawA, rawB net.Conn) {
	rawA, rawB = net.Pipe()
	return wire.NewControl(wire.NewConn(rawA), silence), wire.NewControl(wire.NewConn(rawB), silence), rawA, rawB
}

// A peer is suspected after the failure timeout, and not before: heartbeats,
// however far apart, and any other frame count as life.
func TestControlSuspectsSilence(t *testing.T) {
	const silence = time.Second
	const late = silence - time.Millisecond
	for _, c := range []struct {
		name  string
		speak func(peer *wire.Control)
		after time.Duration // the suspicion, from the start
	}{
		{"nothing comes", func(*wire.Control) {}, silence},
		{"heartbeats come late", func(peer *wire.Control) {
			for range 5 {
				time.Sleep(late)
				peer.Send(wire.TypeHeartbeat, 0)
			}
		}, 5*late + silence},
		{"beats for 10.1 s", func(peer *wire.Control) {
			ctx, cancel := context.WithTimeout(context.Background(), 10100*time.Millisecond)
			defer cancel()
			peer.Beat(ctx)
		}, 10*time.Second + silence},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, _, _ := controls(silence)
				begun := time.Now()
				go c.speak(b)
				f, err := a.Receive()
				if took := time.Since(begun); !errors.Is(err, wire.ErrSilent) || took != c.after {
					t.Errorf("after %v: frame %v, error %v; want ErrSilent after %v", took, f.Type, err, c.after)
				}
				a.Close()
				b.Close()
				synctest.Wait()
			})
		})
	}
}

// Five heartbeats go in each failure timeout, as PROTOCOL.md says: four may get
// lost.
func TestControlBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, _, rawB := controls(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		go a.Beat(ctx)
		peer := wire.NewConn(rawB)
		for i := range 20 {
			begun := time.Now()
			if f, err := peer.ReadFrame(); err != nil || f.Type != wire.TypeHeartbeat || time.Since(begun) != 200*time.Millisecond {
				t.Errorf("heartbeat %d: %v, %v, after %v", i, f.Type, err, time.Since(begun))
			}
		}
		cancel()
		synctest.Wait()
	})
}

// What breaks a connection is not called silence.
func TestControlBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, _, rawB := controls(time.Second)
		rawB.Close()
		if _, err := a.Receive(); err == nil || errors.Is(err, wire.ErrSilent) {
			t.Errorf("error %v, want how the connection broke", err)
		}
		if err := a.Beat(t.Context()); err == nil {
			t.Error("heartbeats go on over a broken connection")
		}
	})
}

// Frames other than heartbeats come through in order, while both sides beat.
func TestControlCarriesFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, _ := controls(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		go a.Beat(ctx)
		go b.Beat(ctx)
		go func() {
			for {
				if _, err := b.Receive(); err != nil {
					return
				}
			}
		}()
		go func() {
			time.Sleep(3 * time.Second)
			b.Send(wire.TypeAck, 7)
			b.SendJSON(wire.TypeDestroyed, wire.Refusal{Code: wire.CodeReplica, Reason: "r"})
		}()
		if f, err := a.Receive(); err != nil || f.Type != wire.TypeAck || f.Epoch != 7 {
			t.Errorf("%v of epoch %d, %v", f.Type, f.Epoch, err)
		}
		f, err := a.Receive()
		var r *wire.Refusal
		if err != nil || !errors.As(f.Refusal(), &r) || r.Code != wire.CodeReplica {
			t.Errorf("%v, %v", f.Type, err)
		}
		cancel()
		a.Close()
		b.Close()
	})
}

// A peer that reads nothing holds a sender up for the failure timeout at most.
func TestControlSendIsBounded(t *testing.T) {
	for name, send := range map[string]func(*wire.Control) error{
		"Send":     func(c *wire.Control) error { return c.Send(wire.TypeAck, 1) },
		"SendJSON": func(c *wire.Control) error { return c.SendJSON(wire.TypeDestroyed, wire.Refusal{}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, _, _, _ := controls(time.Second)
				begun := time.Now()
				if err := send(a); err == nil || time.Since(begun) != time.Second {
					t.Errorf("%v after %v", err, time.Since(begun))
				}
			})
		})
	}
}

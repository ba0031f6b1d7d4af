package xlft_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/tests/simxen"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// The pause contains no wait for the backup: with a backup that takes a second
// for each checkpoint, epochs get longer and the domain's pauses do not.
func TestPauseWithoutNetwork(t *testing.T) {
	pause := func(slow time.Duration) (st primary.Status) {
		synctest.Test(t, func(t *testing.T) {
			out := simxen.NewOutside(1)
			n := simxen.NewNet(20 * time.Millisecond)
			a, b := simxen.NewHost(out, n, "A"), simxen.NewHost(out, n, "B")
			d := a.Boot("web1", 64)
			pa, pb := a.Spawn(), b.Spawn()
			r := &backup.Receiver{
				Software: "x", Restorer: &simxen.Restorer{P: pb, Slow: slow}, Arbiter: arbiter.None{}, Store: pb.Store(records(t)), Log: zap.NewNop(),
				PeerName: func(net.Conn) string { return "A" }, RetryDelay: time.Second, EpochLimit: 1 << 24,
			}
			go r.Serve(pb.Context(), pb.Listen())
			s := &primary.Session{
				Domain: "web1", Instance: "1", Offer: wire.Offer{UUID: "u", Config: []byte("{}")},
				Guest: pa.Guest(d), Gates: xlft.Gates{Net: pa.Gate(d)}, Arbiter: arbiter.None{},
				Dial: pa.Dial("B"), Peer: "B", Store: pa.Store(records(t)), Log: zap.NewNop(),
				Settings: primary.Settings{
					Pacing: xlft.Pacing{EpochMax: 50 * time.Millisecond}, FailureTimeout: 10 * time.Second, AckTimeout: time.Minute,
					SuspendTimeout: time.Second, RetryDelay: time.Second, SpoolLimit: 1 << 24,
				},
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- s.Run(ctx) }()
			time.Sleep(30 * time.Second)
			st = s.Status()
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			pb.Terminate()
			time.Sleep(time.Minute)
			a.Shutdown()
			b.Shutdown()
			for _, v := range out.Violations() {
				t.Error(v)
			}
		})
		return st
	}
	quick, slow := pause(0), pause(time.Second)
	t.Logf("quick backup: %d checkpoints, ack after %v, worst pause %v", quick.Checkpoints, quick.AckMedian, quick.PauseWorst.Total)
	t.Logf("slow backup: %d checkpoints, ack after %v, worst pause %v", slow.Checkpoints, slow.AckMedian, slow.PauseWorst.Total)
	if slow.AckMedian < 500*time.Millisecond || quick.AckMedian > 200*time.Millisecond {
		t.Error("the backups are not what they should be")
	}
	if slow.PauseWorst.Total > quick.PauseWorst.Total+5*time.Millisecond {
		t.Errorf("a slow backup stops the domain for %v, a quick one for %v", slow.PauseWorst.Total, quick.PauseWorst.Total)
	}
}

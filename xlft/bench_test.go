package xlft_test

import (
	"context"
	"net"
	"runtime"
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

// A bench is a session and a receiver over loopback TLS, in real time. Only the
// domain and its restore are simulated.
type bench struct {
	tb      testing.TB
	domain  *simxen.Domain
	session *primary.Session
	events  chan struct{}
	hostA   *simxen.Host
	hostB   *simxen.Host
	ended   chan error
	stop    context.CancelFunc
}

func identityIn(tb testing.TB, name string) *wire.Identity {
	tb.Helper()
	dir := tb.TempDir()
	if _, err := wire.GenerateIdentity(dir, name, false); err != nil {
		tb.Fatal(err)
	}
	id, err := wire.LoadIdentity(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func newBench(tb testing.TB, pages int, compress bool, cache int64) *bench {
	out := simxen.NewOutside(1)
	n := simxen.NewNet(0)
	b := &bench{
		tb: tb, hostA: simxen.NewHost(out, n, "A"), hostB: simxen.NewHost(out, n, "B"),
		events: make(chan struct{}, 1), ended: make(chan error, 1),
	}
	ida, idb := identityIn(tb, "a"), identityIn(tb, "b")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	l := wire.NewListener(inner, idb.TLSConfig(func(f wire.Fingerprint) bool { return f == ida.Fingerprint }))
	pa, pb := b.hostA.Spawn(), b.hostB.Spawn()
	r := &backup.Receiver{
		Software: "bench", Restorer: &simxen.Restorer{P: pb}, Arbiter: arbiter.None{}, Store: pb.Store(records(tb)), Log: zap.NewNop(),
		PeerName: func(net.Conn) string { return "A" }, RetryDelay: time.Second, EpochLimit: 1 << 30, PageCache: cache,
	}
	go r.Serve(pb.Context(), l)
	b.domain = b.hostA.Boot("web1", pages)
	b.session = &primary.Session{
		Domain: "web1", Software: "bench", Instance: "1",
		Offer: wire.Offer{UUID: "u", Config: []byte("{}"), MaxMemKiB: uint64(pages) * 4},
		Settings: primary.Settings{Pacing: xlft.Pacing{Mode: xlft.ModeEvent, EpochMax: time.Hour}, FailureTimeout: 30 * time.Second, AckTimeout: time.Minute, SuspendTimeout: time.Second,
			RetryDelay: time.Second, SpoolLimit: 256 << 20, Compress: compress, PageCache: cache},
		Guest: pa.Guest(b.domain), Gates: xlft.Gates{Net: pa.Gate(b.domain)}, Arbiter: arbiter.None{}, Store: pa.Store(records(tb)), Peer: "B",
		Dial:   ida.Dialer([]string{l.Addr().String()}, idb.Fingerprint),
		Events: b.events, Log: zap.NewNop(),
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	go func() { b.ended <- b.session.Run(ctx) }()
	b.await(1)
	return b
}

// await waits for the ack of epoch e.
func (b *bench) await(e uint64) {
	for {
		changed := b.session.Changed()
		st := b.session.Status()
		if st.Epoch >= e && st.State == primary.Protected {
			return
		}
		select {
		case <-changed:
		case err := <-b.ended:
			b.tb.Fatal("session ended: ", err)
		}
	}
}

// epoch makes the domain write n pages and takes a checkpoint of it.
func (b *bench) epoch(n int) {
	b.domain.Touch(n)
	next := b.session.Status().Epoch + 1
	b.events <- struct{}{}
	b.await(next)
}

func (b *bench) close() {
	b.stop()
	if err := <-b.ended; err != nil {
		b.tb.Error(err)
	}
	b.hostA.Shutdown()
	b.hostB.Shutdown()
}

// BenchmarkEpoch takes checkpoints of 4,000 written pages, from the trigger to
// the ack: pause and ack as ft-status would show them.
func BenchmarkEpoch(b *testing.B) {
	const pages = 4000
	for _, c := range []struct {
		name     string
		compress bool
		cache    int64
	}{{"plain", false, 0}, {"s2", true, 0}, {"lines", false, 128 << 20}, {"lines+s2", true, 128 << 20}} {
		b.Run(c.name, func(b *testing.B) {
			s := newBench(b, 16384, c.compress, c.cache)
			s.epoch(pages) // buffers grow to their size
			b.SetBytes(pages * simxen.PageSize)
			b.ReportAllocs()
			for b.Loop() {
				s.epoch(pages)
			}
			st := s.session.Status()
			b.ReportMetric(float64(st.PauseMedian.Total.Microseconds()), "pause-µs")
			b.ReportMetric(float64(st.AckMedian.Microseconds()), "ack-µs")
			b.ReportMetric(float64(st.WireMedian)/(1<<10), "wire-KiB")
			b.StopTimer()
			s.close()
		})
	}
}

// BenchmarkSeed4GiB makes the first copy of a simulated domain of 4 GiB and
// reports how much memory session and receiver together need at most. The
// domain's own pages are zero and cost nothing.
func BenchmarkSeed4GiB(b *testing.B) {
	const pages = 4 << 30 / simxen.PageSize
	for b.Loop() {
		runtime.GC()
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		var most uint64
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			t := time.NewTicker(20 * time.Millisecond)
			defer t.Stop()
			for {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse-min(before.HeapInuse, m.HeapInuse))
				select {
				case <-t.C:
				case <-stop:
					return
				}
			}
		}()
		s := newBench(b, pages, false, 128<<20)
		close(stop)
		<-done
		b.SetBytes(4 << 30)
		// Two tables of pointers to pages are the simulation's, not xlft's.
		b.ReportMetric(float64(most)/(1<<20), "MiB-heap")
		b.ReportMetric(float64(2*pages*24)/(1<<20), "MiB-of-it-simulation")
		b.ReportMetric(float64(s.session.Status().PeakSpool)/(1<<20), "MiB-spool-peak")
		s.close()
	}
}

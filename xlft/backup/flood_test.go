package backup

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"xlft/xlft/wire"
)

// identity makes a host's key.
func identity(t testing.TB, name string) (*wire.Identity, wire.Fingerprint) {
	dir := t.TempDir()
	fp, err := wire.GenerateIdentity(dir, name, false)
	if err != nil {
		t.Fatal(err)
	}
	id, err := wire.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id, fp
}

// flood is strangers who open connections to a receiver as fast as they can, and shake
// hands with a certificate that nobody has pinned, with none, or not at all, from one
// address or from many. It ends with the test.
func flood(t testing.TB, address string, many bool) {
	stranger, _ := identity(t, "stranger")
	any := func(wire.Fingerprint) bool { return true }
	with := stranger.TLSConfig(any)
	without := with.Clone()
	without.Certificates = nil
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var n atomic.Uint32
	dial := func() (net.Conn, error) {
		from := uint32(127<<24 | 66)
		if many {
			from = 127<<24 | 1<<16 | n.Add(1)%(1<<23)
		}
		ip := binary.BigEndian.AppendUint32(nil, from)
		return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}}).DialContext(ctx, "tcp", address)
	}
	shake := func(conf *tls.Config) func() {
		return func() {
			c, err := dial()
			if err != nil {
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			tc := tls.Client(c, conf)
			if tc.Handshake() == nil {
				tc.Read(make([]byte, 1))
			}
		}
	}
	var silent []net.Conn
	stay := func() {
		c, err := dial()
		if err != nil {
			return
		}
		if silent = append(silent, c); len(silent) > 2*maxGreeting {
			silent[0].Close()
			silent = silent[1:]
		}
	}
	for _, f := range []func(){shake(with), shake(without), stay} {
		wg.Go(func() {
			for ctx.Err() == nil {
				f()
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, c := range silent {
			c.Close()
		}
	})
}

// flooded is a receiver with strangers at its door. What it logs comes to logs.
func flooded(t testing.TB, many bool) (greet func() time.Duration, logs *observer.ObservedLogs) {
	host, hostPrint := identity(t, "B")
	peer, peerPrint := identity(t, "A")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.WarnLevel)
	r := &Receiver{Software: "test", Log: zap.New(core), PeerName: func(net.Conn) string { return "A" }}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		r.Serve(ctx, wire.NewListener(l, host.TLSConfig(func(f wire.Fingerprint) bool { return f == peerPrint })))
	}()
	t.Cleanup(func() { cancel(); l.Close(); <-served })
	dial := peer.Dialer([]string{l.Addr().String()}, hostPrint)
	greet = func() time.Duration {
		begun := time.Now()
		c, _, err := wire.Open(context.Background(), dial, wire.KindQuery, "", "test")
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		c.Close()
		return took
	}
	greet() // the peer's host is known from then on
	flood(t, l.Addr().String(), many)
	return greet, logs
}

// Strangers, in any number and speed, delay a peer by no more than a second, and fill
// no log.
func TestStrangersDelayNobody(t *testing.T) {
	for _, many := range []bool{false, true} {
		t.Run(fmt.Sprintf("many addresses %v", many), func(t *testing.T) { strangersDelayNobody(t, many) })
	}
}

func strangersDelayNobody(t *testing.T, many bool) {
	greet, logs := flooded(t, many)
	var worst time.Duration
	for round := range 3 { // what else runs on this machine delays it too
		worst = 0
		n := 0
		for begun := time.Now(); time.Since(begun) < time.Second; n++ {
			worst = max(worst, greet())
		}
		t.Logf("round %d: %d greetings, the longest took %v", round+1, n, worst)
		if worst <= time.Second {
			break
		}
	}
	if worst > time.Second {
		t.Error("strangers delay a peer for more than a second")
	}
	if n := logs.FilterMessage("peer turned away").Len(); n == 0 || n > 20 {
		t.Errorf("%d lines are logged of strangers", n)
	}
}

// BenchmarkGreet is a peer's way through the door while strangers crowd there.
func BenchmarkGreet(b *testing.B) {
	greet, _ := flooded(b, true)
	var worst time.Duration
	for b.Loop() {
		worst = max(worst, greet())
	}
	b.ReportMetric(float64(worst.Microseconds())/1000, "worst-ms")
}

package backup

import (
	"context"
	"net"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"xlft/xlft/wire"
)

// A peer that only wants to know whether somebody is here, or came by two paths at once and
// hangs up on one, is no news. A stranger is.
func TestVisits(t *testing.T) {
	host, hostPrint := identity(t, "B")
	peer, peerPrint := identity(t, "A")
	stranger, _ := identity(t, "C")
	core, logs := observer.New(zapcore.InfoLevel)
	r := &Receiver{Software: "test", Log: zap.New(core)}
	r.PeerName = func(c net.Conn) string {
		if f, ok := wire.PeerOf(c); ok && f == peerPrint {
			return "A"
		}
		return ""
	}
	visited := func(visit func(address []string)) {
		t.Helper()
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := []string{inner.Addr().String()}
		over := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan struct{})
		go func() {
			defer close(served)
			r.Serve(ctx, wire.NewListener(watched{inner, over}, host.TLSConfig(func(f wire.Fingerprint) bool { return f == peerPrint })))
		}()
		visit(at)
		<-over
		cancel()
		<-served
	}
	visited(func(at []string) {
		c, _, err := wire.Open(t.Context(), peer.Dialer(at, hostPrint), wire.KindQuery, "", "test")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	visited(func(at []string) {
		c, err := peer.Dialer(at, hostPrint)(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	if n := logs.Len(); n != 0 {
		t.Errorf("logged: %+v", logs.All())
	}
	visited(func(at []string) {
		if c, err := stranger.Dialer(at, hostPrint)(t.Context()); err == nil {
			c.Read(make([]byte, 1))
			c.Close()
		}
	})
	if n := logs.Len(); n != 1 {
		t.Errorf("of a stranger: %+v", logs.All())
	}
}

// watched says when the server has hung up on its visitor.
type watched struct {
	net.Listener
	over chan struct{}
}

func (l watched) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &visitor{Conn: c, over: sync.OnceFunc(func() { close(l.over) })}, nil
}

type visitor struct {
	net.Conn
	over func()
}

func (v *visitor) Close() error {
	v.over()
	return v.Conn.Close()
}

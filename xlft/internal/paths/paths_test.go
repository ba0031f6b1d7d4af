package paths

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A host answers at an address until it is closed.
type host struct {
	net.Listener
	calls sync.WaitGroup
}

func open(t *testing.T, id *wire.Identity, peer wire.Fingerprint, address string) *host {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{Listener: wire.NewListener(l, id.TLSConfig(func(f wire.Fingerprint) bool { return f == peer }))}
	h.calls.Go(func() {
		for {
			c, err := h.Accept()
			if err != nil {
				return
			}
			h.calls.Go(func() {
				defer c.Close()
				wire.Welcome(wire.NewConn(c), "beta", 0, wire.GreetTimeout)
			})
		}
	})
	t.Cleanup(h.close)
	return h
}

func (h *host) close() {
	h.Close()
	h.calls.Wait()
}

func identity(t *testing.T, name string) *wire.Identity {
	t.Helper()
	dir := t.TempDir()
	if _, err := wire.GenerateIdentity(dir, name, false); err != nil {
		t.Fatal(err)
	}
	id, err := wire.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestMonitor(t *testing.T) {
	alpha, beta := identity(t, "alpha"), identity(t, "beta")
	one, two := open(t, beta, alpha.Fingerprint, "127.0.0.1:0"), open(t, beta, alpha.Fingerprint, "127.0.0.2:0")
	first, second := one.Addr().String(), two.Addr().String()
	conf := &config.Config{Peers: map[string]config.Peer{
		"beta":  {Name: "beta", Addresses: []string{second, first}, Fingerprint: beta.Fingerprint},
		"gamma": {Name: "gamma", Addresses: []string{"127.0.0.3:1"}},
	}}
	core, logs := observer.New(zap.InfoLevel)
	m := &Monitor{Config: func() *config.Config { return conf }, Software: "test", Log: zap.New(core),
		Dial: func(p config.Peer, a string) wire.Dialer { return alpha.Dialer([]string{a}, p.Fingerprint) }}
	up := func(want ...string) {
		t.Helper()
		var got []string
		for _, p := range m.Paths() {
			state := "broken"
			if p.Up {
				state = "up"
			}
			if p.Peer != "beta" || p.Up != (p.Error == "") || time.Since(p.Since) > time.Minute {
				t.Errorf("%+v", p)
			}
			got = append(got, p.Address+" "+state)
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("%v, want %v", got, want)
		}
	}
	m.look(t.Context())
	up(second+" up", first+" up")
	two.close()
	m.look(t.Context())
	up(second+" up", first+" up") // one call may be lost
	m.look(t.Context())
	up(second+" broken", first+" up")
	m.look(t.Context())
	open(t, beta, alpha.Fingerprint, second)
	m.look(t.Context())
	up(second+" up", first+" up")
	var said []string
	for _, e := range logs.All() {
		said = append(said, e.Message)
	}
	if got := strings.Join(said, ", "); got != "a path to a peer is broken, a path to a peer is whole again" {
		t.Errorf("logged: %s", got)
	}
	conf = &config.Config{Peers: map[string]config.Peer{"beta": {Name: "beta", Addresses: []string{first}}}}
	m.look(t.Context())
	up()
}

// Somebody else at a peer's address is a broken path.
func TestStranger(t *testing.T) {
	alpha, beta, stranger := identity(t, "alpha"), identity(t, "beta"), identity(t, "beta")
	at := open(t, stranger, alpha.Fingerprint, "127.0.0.1:0").Addr().String()
	conf := &config.Config{Peers: map[string]config.Peer{"beta": {Name: "beta", Addresses: []string{at, "127.0.0.2:1"}, Fingerprint: beta.Fingerprint}}}
	m := &Monitor{Config: func() *config.Config { return conf }, Log: zap.NewNop(),
		Dial: func(p config.Peer, a string) wire.Dialer { return alpha.Dialer([]string{a}, p.Fingerprint) }}
	m.look(t.Context())
	m.look(t.Context())
	for _, p := range m.Paths() {
		if p.Up || p.Error == "" {
			t.Errorf("%+v", p)
		}
	}
}

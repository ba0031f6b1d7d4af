package backup

import (
	"fmt"
	"net"
	"testing"
)

type from struct {
	net.Conn
	addr   string
	closed bool
}

func (f *from) RemoteAddr() net.Addr { return addr(f.addr) }
func (f *from) Close() error         { f.closed = true; return nil }

type addr string

func (a addr) Network() string { return "tcp" }
func (a addr) String() string  { return string(a) }

// Hosts from which peers came are spared, however many others there are; and those that
// are remembered are few.
func TestKnownHosts(t *testing.T) {
	var g greeters
	for i := range 2 * maxKnown {
		g.know(addr(fmt.Sprintf("192.0.2.%d:4711", i)))
		g.know(addr("192.0.2.250:4711"))
	}
	if len(g.known) != maxKnown {
		t.Errorf("%d hosts are remembered", len(g.known))
	}
	peer := &from{addr: "192.0.2.250:4712"}
	g.add(peer)
	for i := range 10 * maxGreeting {
		g.add(&from{addr: fmt.Sprintf("10.%d.%d.%d:99", i>>16, i>>8&255, i&255)})
	}
	if peer.closed || len(g.all) > maxGreeting {
		t.Errorf("the peer was turned away: %v; %d connections greet", peer.closed, len(g.all))
	}
	// A host of peers that opens too many pays for it itself.
	for range 2 * maxGreeting {
		g.add(&from{addr: "192.0.2.251:99"})
	}
	g.know(addr("192.0.2.251:99"))
	for range 2 * maxGreeting {
		g.add(&from{addr: "192.0.2.251:99"})
	}
	if peer.closed || len(g.all) > maxGreeting {
		t.Errorf("the peer was turned away: %v; %d connections greet", peer.closed, len(g.all))
	}
}

// Strangers that say nothing, from one host or many, do not keep a peer out; and
// cost no more than maxGreeting connections.
func TestFlood(t *testing.T) {
	for name, stranger := range map[string]func(int) string{
		"one host":            func(i int) string { return fmt.Sprintf("192.0.2.66:%d", 1024+i) },
		"one IPv6 host":       func(i int) string { return fmt.Sprintf("[2001:db8::%x]:99", i+1) },
		"as many as there is": func(i int) string { return fmt.Sprintf("10.%d.%d.%d:99", i>>16, i>>8&255, i&255) },
	} {
		t.Run(name, func(t *testing.T) {
			var g greeters
			var all []*from
			add := func(a string) (*from, func()) {
				c := &from{addr: a}
				all = append(all, c)
				return c, g.add(c)
			}
			for i := range 10 * maxGreeting {
				add(stranger(i))
			}
			peer, greeted := add("192.0.2.2:4711")
			for i := range maxGreeting / 2 { // while it greets
				add(stranger(10*maxGreeting + i))
			}
			if peer.closed {
				t.Error("the peer was turned away")
			}
			greeted()
			greeted()
			open := 0
			for _, c := range all {
				if !c.closed {
					open++
				}
			}
			if open > maxGreeting+1 || len(g.all) > maxGreeting {
				t.Errorf("%d connections are open, %d known", open, len(g.all))
			}
		})
	}
}

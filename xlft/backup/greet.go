package backup

import (
	"net"
	"net/netip"
	"sync"
)

// maxGreeting is how many connections may be greeting at a time. Each costs some
// 10 KiB and a descriptor.
const maxGreeting = 256

// greeters are the connections that have not said HELLO yet: anybody may open
// those. If there are too many, the oldest of whoever has most of them goes: a peer,
// which greets within milliseconds, gets through a flood of others.
type greeters struct {
	mu  sync.Mutex
	all []greeter // oldest first
}

type greeter struct {
	conn net.Conn
	from string
}

// add takes a connection, and closes another one if there are too many.
func (g *greeters) add(c net.Conn) (greeted func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = append(g.all, greeter{c, origin(c.RemoteAddr())})
	if len(g.all) > maxGreeting {
		g.evict().Close()
	}
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for i, x := range g.all {
			if x.conn == c {
				g.remove(i)
				return
			}
		}
	})
}

func (g *greeters) evict() net.Conn {
	count := map[string]int{}
	most := 0
	for _, x := range g.all {
		count[x.from]++
		most = max(most, count[x.from])
	}
	for i, x := range g.all {
		if count[x.from] == most {
			g.remove(i)
			return x.conn
		}
	}
	panic("backup: no connection is greeting")
}

func (g *greeters) remove(i int) { g.all = append(g.all[:i], g.all[i+1:]...) }

// origin is the host of an address: of an IPv6 address the /64, of which one host
// has all addresses.
func origin(a net.Addr) string {
	if a == nil {
		return ""
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

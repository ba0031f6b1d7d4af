package backup

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// maxGreeting is how many connections may be greeting at a time. Each costs some
// 10 KiB and a descriptor.
const maxGreeting = 256

// maxKnown is how many hosts are remembered from which peers came.
const maxKnown = 64

// greeters are the connections that have not said HELLO yet: anybody may open
// those. If there are too many, the oldest of whoever has most of them goes: a peer,
// which greets within milliseconds, gets through a flood of others. Hosts from which a
// peer came before are spared as long as there are others.
type greeters struct {
	log *zap.Logger // of strangers

	mu    sync.Mutex
	all   []greeter // oldest first
	known []string  // origins, the newest last
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

// know remembers where a peer came from.
func (g *greeters) know(a net.Addr) {
	from := origin(a)
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.known, from); i >= 0 {
		g.known = slices.Delete(g.known, i, i+1)
	} else if len(g.known) == maxKnown {
		g.known = slices.Delete(g.known, 0, 1)
	}
	g.known = append(g.known, from)
}

// sparing logs of what is the same ten lines a minute and then one in ten thousand:
// strangers must not fill a log.
func sparing(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Minute, 10, 10_000)
	}))
}

func (g *greeters) evict() net.Conn {
	strangers := slices.ContainsFunc(g.all, func(x greeter) bool { return !slices.Contains(g.known, x.from) })
	count := map[string]int{}
	most := 0
	for _, x := range g.all {
		if strangers && slices.Contains(g.known, x.from) {
			continue
		}
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

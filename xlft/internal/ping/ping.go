// Package ping asks hosts whether they are there, by ICMP echo (RFC 792, RFC 4443).
//
// The one rule a caller must know: an answer says that this host reaches something
// outside. No answer says nothing of those that were asked.
package ping

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// again is the time between two requests to a target.
const again = 200 * time.Millisecond

// Any returns nil as soon as one of the targets answers. The error, after limit or the
// context's end, names those that did not, or says why they could not be asked. It needs
// CAP_NET_RAW.
func Any(ctx context.Context, targets []netip.Addr, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	errs := make([]error, len(targets))
	answered := make(chan struct{}, len(targets))
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() {
			if errs[i] = one(ctx, t); errs[i] == nil {
				answered <- struct{}{}
				cancel()
			}
		})
	}
	all.Wait()
	select {
	case <-answered:
		return nil
	default:
	}
	var names []string
	var failed []error
	for i, t := range targets {
		names = append(names, t.String())
		if !errors.Is(errs[i], errSilent) {
			failed = append(failed, fmt.Errorf("ping %s: %w", t, errs[i]))
		}
	}
	return errors.Join(append([]error{fmt.Errorf("no answer to a ping within %v from %s", limit, strings.Join(names, ", "))}, failed...)...)
}

var errSilent = errors.New("no answer")

// one asks a target until it answers.
func one(ctx context.Context, target netip.Addr) error {
	network, local, request, reply, protocol := "ip4:icmp", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if target.Is6() && !target.Is4In6() {
		network, local, request, reply, protocol = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	c, err := icmp.ListenPacket(network, local)
	if err != nil {
		return err
	}
	defer c.Close()
	// Each socket gets the answers to all programs of the host: the identifier and the
	// data say which are ours.
	mine := &icmp.Echo{ID: int(rand.Uint32N(1 << 16)), Data: fmt.Appendf(nil, "xlft %016x", rand.Uint64())}
	to := &net.IPAddr{IP: target.Unmap().AsSlice(), Zone: target.Zone()}
	var unsent error
	for b := make([]byte, 1500); ; mine.Seq++ {
		m, err := (&icmp.Message{Type: request, Body: mine}).Marshal(nil)
		if err != nil {
			return err
		}
		_, unsent = c.WriteTo(m, to) // a route may come back
		c.SetReadDeadline(time.Now().Add(again))
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				break
			}
			m, err := icmp.ParseMessage(protocol, b[:n])
			if err != nil || m.Type != reply {
				continue
			}
			if e, ok := m.Body.(*icmp.Echo); ok && e.ID == mine.ID && string(e.Data) == string(mine.Data) && same(from, target) {
				return nil
			}
		}
		if ctx.Err() != nil {
			if unsent != nil {
				return unsent
			}
			return errSilent
		}
	}
}

func same(from net.Addr, target netip.Addr) bool {
	ip, ok := from.(*net.IPAddr)
	if !ok {
		return false
	}
	a, ok := netip.AddrFromSlice(ip.IP)
	return ok && a.Unmap() == target.Unmap().WithZone("")
}

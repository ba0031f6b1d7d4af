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

// Own returns the first of the targets that is an address of this host.
func Own(targets []netip.Addr) (own netip.Addr, ok bool) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return own, false
	}
	for _, a := range all {
		n, isNet := a.(*net.IPNet)
		if !isNet {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		for _, t := range targets {
			if ip.Unmap() == t.Unmap().WithZone("") {
				return t, true
			}
		}
	}
	return own, false
}

// Any returns nil as soon as one of the targets answers. The error, after limit or the
// context's end, names those that did not, or says why they could not be asked. It needs
// CAP_NET_RAW.
func Any(ctx context.Context, targets []netip.Addr, limit time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := time.Now().Add(limit)
	errs := make([]error, len(targets))
	answered := make(chan struct{}, len(targets))
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() {
			if errs[i] = one(ctx, t, end); errs[i] == nil {
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

// lastLook is for an answer that came while this process stood still.
const lastLook = time.Millisecond

// one asks a target until it answers, or the time is over.
func one(ctx context.Context, target netip.Addr, end time.Time) error {
	network, local, request, reply, protocol := "ip4:icmp", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if target.Is6() && !target.Is4In6() {
		network, local, request, reply, protocol = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	c, err := icmp.ListenPacket(network, local)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })() // nobody needs the answer any more
	// Each socket gets the answers to all programs of the host: the identifier and the
	// data say which are ours.
	mine := &icmp.Echo{ID: int(rand.Uint32N(1 << 16)), Data: fmt.Appendf(nil, "xlft %016x", rand.Uint64())}
	to := &net.IPAddr{IP: target.Unmap().AsSlice(), Zone: target.Zone()}
	b := make([]byte, 1500)
	heard := func(until time.Time) bool {
		c.SetReadDeadline(until)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return false
			}
			m, err := icmp.ParseMessage(protocol, b[:n])
			if err != nil || m.Type != reply {
				continue
			}
			if e, ok := m.Body.(*icmp.Echo); ok && e.ID == mine.ID && string(e.Data) == string(mine.Data) && same(from, target) {
				return true
			}
		}
	}
	for ; ; mine.Seq++ {
		m, err := (&icmp.Message{Type: request, Body: mine}).Marshal(nil)
		if err != nil {
			return err
		}
		_, unsent := c.WriteTo(m, to) // a route may come back
		next := time.Now().Add(again)
		if next.After(end) {
			next = end
		}
		switch {
		case heard(next):
			return nil
		case ctx.Err() != nil:
			return errSilent
		case time.Now().Before(end):
		case heard(time.Now().Add(lastLook)):
			return nil
		case unsent != nil:
			return unsent
		default:
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

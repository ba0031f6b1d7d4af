// Package arbiter has the arbiters that can be configured: who decides which
// host runs a domain when the hosts can't reach each other.
//
// The one rule a caller must know: an error of a claim decides nothing. The
// claim may have been won, and is made again.
package arbiter

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/ping"
	"xlft/xlft/wire"
)

// longestPing is less than anybody waits for a check.
const longestPing = 5 * time.Second

// New returns the arbiter of a configuration. Dial calls a peer, which an
// arbiter may ask before it decides.
func New(c *config.Config, software string, dial func(config.Peer) wire.Dialer, log *zap.Logger) xlft.Arbiter {
	ask := Asker{
		Log: log, Timeout: 2 * c.Default.FailureTimeout,
		Ask: func(ctx context.Context, peer string, q wire.OwnerQuery) (r wire.OwnerResult, err error) {
			p, ok := c.Peers[peer]
			if !ok {
				return r, fmt.Errorf("no [peer.%s] in the configuration", peer)
			}
			err = wire.Ask(ctx, dial(p), software, wire.TypeOwner, q, wire.TypeOwnerResult, &r)
			return r, err
		},
	}
	if targets := c.Arbiter.Ping; len(targets) > 0 {
		ask.Outside = func(ctx context.Context) error {
			if own, ok := ping.Own(targets); ok {
				return fmt.Errorf("arbiter.ping: %s is this host's own address, and answers always", own)
			}
			return ping.Any(ctx, targets, min(2*c.Default.FailureTimeout, longestPing))
		}
	}
	if c.Arbiter.Type == "fence" {
		ask.Timeout = max(ask.Timeout, c.Arbiter.FenceAfter)
		ask.Host, ask.Second, ask.HeadStart = c.Name, c.Default.FailureTimeout, 2*c.Default.FailureTimeout
	}
	ledger := func(r Register) *Ledger {
		ask.HeadStart = c.Default.FailureTimeout
		return &Ledger{Asker: ask, Kind: c.Arbiter.Type, Host: c.Name, Register: r}
	}
	switch c.Arbiter.Type {
	case "etcd":
		return ledger(&Etcd{Etcd: *c.Arbiter.Etcd, Log: log})
	case "file":
		return ledger(&File{File: *c.Arbiter.File})
	case "none":
		paths := map[string]bool{}
		for _, p := range c.Peers {
			paths[p.Name] = len(p.Addresses) > 1
		}
		return None{ask, paths}
	case "fence":
		return &Fence{Asker: ask, Peers: c.Peers}
	case "manual":
		return Manual{ask}
	}
	// None would give every claim to whoever makes it.
	panic(fmt.Sprintf("arbiter: type %q is in a validated configuration, and New does not know it", c.Arbiter.Type))
}

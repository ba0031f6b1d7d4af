package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"xlft/netbuffer"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/fence"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

// dialTimeout bounds one attempt to reach a peer.
const dialTimeout = 10 * time.Second

// dialer opens TLS connections to a peer, and to nobody else.
func dialer(id *wire.Identity, p config.Peer) wire.Dialer {
	conf := id.TLSConfig(func(f wire.Fingerprint) bool { return f == p.Fingerprint })
	return func(ctx context.Context) (net.Conn, error) {
		c, err := wire.Dial(ctx, &net.Dialer{Timeout: dialTimeout}, p.Address, conf)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// peerOf returns the backup that a domain is to have.
func peerOf(c *config.Config, d config.Domain, override string) (config.Peer, error) {
	name := d.Backup
	if override != "" {
		name = override
	}
	if name == "" {
		return config.Peer{}, fmt.Errorf("%s: no backup is configured: set backup, or give --backup", d.Name)
	}
	p, ok := c.Peers[name]
	if !ok {
		return p, fmt.Errorf("%s: no [peer.%s] in the configuration", d.Name, name)
	}
	return p, nil
}

// arbiter returns the arbiter of the configuration.
func arbiter(c *config.Config, id *wire.Identity, log *zap.Logger) xlft.Arbiter {
	if c.Arbiter.Type != "fence" {
		return xlft.None{}
	}
	return &fence.Arbiter{Peers: c.Peers, Log: log, AskTimeout: 2 * c.Default.FailureTimeout, Ask: func(ctx context.Context, peer string, q wire.OwnerQuery) (r wire.OwnerResult, err error) {
		p, ok := c.Peers[peer]
		if !ok {
			return r, fmt.Errorf("no [peer.%s] in the configuration", peer)
		}
		err = wire.Ask(ctx, dialer(id, p), software(), wire.TypeOwner, q, wire.TypeOwnerResult, &r)
		return r, err
	}}
}

// offer describes a domain of this host to a backup.
func offer(ctx context.Context, c *config.Config, h *xen.Host, d xen.Domain) (wire.Offer, *domconf.Config, error) {
	raw, err := h.Config(d.ID)
	if err != nil {
		return wire.Offer{}, nil, err
	}
	conf, err := domconf.Parse(raw)
	if err != nil {
		return wire.Offer{}, nil, err
	}
	info, err := h.Info()
	if err != nil {
		return wire.Offer{}, nil, err
	}
	disks, err := offeredDisks(ctx, c, d.Name, conf.Copied())
	if err != nil {
		return wire.Offer{}, nil, err
	}
	return wire.Offer{
		Disks: disks, Domain: d.Name, UUID: d.UUID, Config: raw, MaxMemKiB: conf.Build.MaxMemKiB,
		XenVersion: info.Version, FailureTimeout: c.For(d.Name).FailureTimeout,
	}, conf, nil
}

// instance tells a run of a domain from all others: this boot, this domid.
func instance(d xen.Domain) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s/%d", strings.TrimSpace(string(boot)), d.ID)
}

// gate is a netbuffer.Gate as xlft.Session wants it.
type gate struct{ *netbuffer.Gate }

// gateTimeout bounds waits for packets on their way out.
const gateTimeout = 5 * time.Second

// openGate builds, or adopts, the network gate of a domain.
func openGate(h *xen.Host, d xen.Domain, limit uint64) (*gate, error) {
	g, err := netbuffer.Open(d.ID, netbuffer.Options{
		Limit: uint32(min(limit, 1<<32-1)),
		// A domain that stands still a little longer is better than one that
		// loses its protection because dom0 is busy.
		Timeout: gateTimeout,
		Quiesce: func() (func(), error) {
			if err := h.Pause(d.ID); err != nil {
				return nil, err
			}
			return func() { h.Unpause(d.ID) }, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return &gate{g}, nil
}

// Seal also gives gates to network devices that came since. What those sent in
// this epoch was not held: protection begins anew.
func (g *gate) Seal(epoch uint64) error {
	err := g.Gate.Seal(epoch)
	if err != nil {
		if vifs, xerr := g.Gate.Extend(); xerr == nil && len(vifs) > 0 {
			return fmt.Errorf("%w (now held too: %s)", err, strings.Join(vifs, " "))
		}
	}
	return err
}

func (g *gate) Held() (held, limit uint64, err error) {
	st, err := g.Stats()
	if err != nil {
		return 0, 0, err
	}
	for _, v := range st.Vifs {
		// The fullest device decides.
		if limit == 0 || v.Bytes*limit > held*v.Limit {
			held, limit = v.Bytes, v.Limit
		}
	}
	return held, limit, nil
}

// check looks for every reason why a domain can't be protected now, on both
// hosts. An error means that it could not look.
func check(ctx context.Context, c *config.Config, id *wire.Identity, h *xen.Host, d xen.Domain, p config.Peer) ([]wire.Problem, error) {
	var ps []wire.Problem
	o, conf, err := offer(ctx, c, h, d)
	if err != nil {
		return nil, err
	}
	info, err := h.Info()
	if err != nil {
		return nil, err
	}
	for _, q := range conf.Problems(info.ShadowPV) {
		ps = append(ps, wire.Problem{What: q.What, Advice: q.Advice})
	}
	if len(conf.NICs) > 0 {
		if err := netbuffer.Check(ctx); err != nil {
			ps = append(ps, wire.Problem{What: err.Error(), Advice: advice(err)})
		}
	}
	st, why, err := h.Guest(d).State()
	switch {
	case err != nil:
		return nil, err
	case st == xlft.GuestSuspended:
		ps = append(ps, wire.Problem{What: "the domain is suspended", Advice: "Resume it, or wait for what suspended it."})
	case st == xlft.GuestOver:
		ps = append(ps, wire.Problem{What: "the domain has ended: " + why, Advice: "Start it again."})
	}
	if f, ok := arbiter(c, id, zap.NewNop()).(xlft.ArbiterChecker); ok {
		if err := f.Check(ctx, p.Name); err != nil {
			ps = append(ps, wire.Problem{What: err.Error(), Advice: "Try the agent by hand with the options of the configuration: until it works, nobody could decide after a failure."})
		}
	}
	o.MaxEpoch = c.CheckpointMemory
	var r wire.CheckResult
	if err := wire.Ask(ctx, dialer(id, p), software(), wire.TypeCheck, o, wire.TypeCheckResult, &r); err != nil {
		a := advice(err)
		if a == "" {
			a = "Look at the network between the hosts, and at the receiver's log on the backup."
		}
		return append(ps, wire.Problem{What: fmt.Sprintf("backup %s (%s) can't be asked: %v", p.Name, p.Address, err), Advice: a}), nil
	}
	own := map[string]bool{}
	for _, q := range ps {
		own[q.What] = true
	}
	for _, q := range r.Problems {
		// What is wrong with the domain itself, both hosts say.
		if !own[strings.TrimPrefix(q.What, "backup: ")] {
			ps = append(ps, q)
		}
	}
	return ps, nil
}

package netbuffer

import "errors"

// Stats are the counters of a gate, taken while no epoch changed.
type Stats struct {
	Holding bool       // output waits for a release
	Sealed  uint64     // epoch that is sealed and not released; 0 if none
	Vifs    []VifStats // in the order of Gate.Vifs
	Packets uint64     // waiting, of all vifs
	Bytes   uint64     // of Packets
	Drops   uint64     // packets of all vifs that found their queue full

	// Fullest is how full the fullest vif is: its memory by its limit. A
	// checkpoint is due before that is 1; from 1 on the domain must not send.
	Fullest float64
}

// VifStats are the counters of one vif, both queues taken together.
type VifStats struct {
	Name    string
	Packets uint64 // waiting
	Bytes   uint64 // of Packets
	Memory  uint64 // that the packets take at most, in bytes: QueueState.Memory
	Limit   uint64 // of Memory
	Passed  uint64 // bytes that left
	Drops   uint64 // packets that found the queue full
	Gone    bool   // the vif vanished
}

// Stats reads the queues, and checks that the vifs' packets still go through
// them. ErrBypassed says that some other program removed a redirect, ErrForeign
// that it added a filter, a BPF program or an nftables chain, ErrNewVif and
// ErrMoved that a vif came or was moved away, ErrDropped that a queue dropped
// packets since the first Seal. The numbers are good even then. BPF programs and
// chains are looked for five times a second at most.
func (g *Gate) Stats() (Stats, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Stats{Holding: g.holding}
	if g.sealed {
		s.Sealed = g.epoch
	}
	if g.closed {
		return s, g.errorf("stats: %w", ErrClosed)
	}
	errs := g.checkVifs()
	for _, check := range []func(host, *vif) error{host.redirected, host.alone} {
		if err := g.each(check); err != nil {
			errs = errors.Join(errs, g.errorf("stats: %w", err))
		}
	}
	for _, v := range g.vifs {
		stats, running, err := v.stats(g.opts.limit())
		if err != nil {
			errs = errors.Join(errs, g.errorf("stats: %s: %w", v.Name, err))
		}
		if n := v.dropped(stats.Drops); n > 0 && g.holding && !g.adopted {
			errs = errors.Join(errs, g.errorf("stats: %s: %d %w", v.Name, n, ErrDropped))
		}
		if running > 0 && g.holding && !g.adopted {
			g.events.first()()
		}
		s.Vifs = append(s.Vifs, stats)
		s.Packets += stats.Packets
		s.Bytes += stats.Bytes
		s.Drops += stats.Drops
		s.Fullest = max(s.Fullest, float64(stats.Memory)/float64(stats.Limit))
	}
	return s, errs
}

// dropped returns how many packets were dropped since the gate began to hold,
// with the queues' present counters. A packet that a queue drops counts as lost
// too. The count of the lost begins anew with a new redirect.
func (v *vif) dropped(drops uint64) uint64 {
	if v.lost < v.lostBefore {
		v.lostBefore = 0
	}
	return max(drops-min(v.drops, drops), v.lost-v.lostBefore)
}

// stats adds up the two queues of a vif, and returns how many packets the
// current one has. A queue that can't be read counts as empty, and its error
// comes back.
func (v *vif) stats(limit uint64) (s VifStats, running uint64, errs error) {
	s = VifStats{Name: v.Name, Limit: limit, Gone: v.gone}
	for q := range 2 {
		st, err := v.Path.State(q)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if q == v.Current {
			running = st.Packets
		}
		s.Packets += st.Packets
		s.Bytes += st.Bytes
		s.Passed += st.Passed
		s.Drops += st.Drops
		s.Memory += st.Memory()
	}
	return s, running, errs
}

// Held returns how much memory the packets take that wait behind the vif that is
// fullest, and the limit for it, in bytes; 0, 0 without vifs. When held reaches
// the limit the domain must be kept from sending. Errors are those of Stats; the
// numbers are good even then.
func (g *Gate) Held() (held, limit uint64, err error) {
	st, err := g.Stats()
	for _, v := range st.Vifs {
		if limit == 0 || v.Memory > held {
			held, limit = v.Memory, v.Limit
		}
	}
	return held, limit, err
}

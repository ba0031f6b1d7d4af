package netbuffer

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The redirect of a vif is a matchall filter with two actions: mirred, which
// redirects to an ifb, and gact, which swallows the packet.
//
// Mirred alone could do both (control "stolen"). But then the packet itself
// would wait in the gate, and the packets that xen-netback passes on are the
// domain's own pages. The domain could change their content after its
// checkpoint, and its kernel, whose ring slots wait with them, lets a connection
// have two such packets. With the control "pipe" mirred clones the packet; the
// kernel copies the domain's pages for a clone (skb_clone and skb_orphan_frags
// in net/core/skbuff.c), and the ring slot is answered when gact swallows the
// original. A mirred action that fails drops the packet without asking gact.
const (
	// filterHandle is the handle of our filters; a later process knows them by
	// it.
	filterHandle = 0x786c6674

	// filterPriority is the filter's. At sparePriority another one stands in
	// while the filter is replaced.
	filterPriority = 1
	sparePriority  = 2

	// actionIndex plus the index of a vif's first ifb is the index of the
	// filter's mirred action, plus that of the second ifb the index of the
	// spare filter's. The kernel counts up from 1 for programs that don't choose
	// an index: if the vif vanishes during a Steer, no action of some other
	// program is changed. Gates of earlier versions, whose mirred action had the
	// control "stolen", have 0x78000000 here.
	actionIndex = 0x79000000
)

// swallow ends a packet whose copy is in the gate. "drop" would do too, but then
// the host's drop counters and drop monitors would show every packet.
func swallow() netlink.Action {
	return &netlink.GenericAction{ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}}
}

// filter returns the redirect of the vif to a queue, or the spare one.
func (d *device) filter(queue int, priority uint16) *netlink.MatchAll {
	index := actionIndex | d.ifb[0].Attrs().Index
	if priority == sparePriority {
		index = actionIndex | d.ifb[1].Attrs().Index
	}
	return &netlink.MatchAll{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: d.vif.Attrs().Index,
			Handle:    filterHandle,
			Parent:    netlink.HANDLE_MIN_INGRESS,
			Priority:  priority,
			Protocol:  unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{
			&netlink.MirredAction{
				ActionAttrs:  netlink.ActionAttrs{Index: index, Action: netlink.TC_ACT_PIPE},
				MirredAction: netlink.TCA_EGRESS_REDIR,
				Ifindex:      d.ifb[queue].Attrs().Index,
			},
			swallow(),
		},
	}
}

// addFilter redirects the vif to a queue, unless the vif is redirected to one
// already, and keeps the index of the mirred action for Steer. filters are the
// vif's.
//
// An earlier process may have left a redirect of another form, or one whose ifb
// is gone, which drops everything. The kernel does not change the actions of a
// matchall filter. So a spare filter stands in while the filter is replaced: no
// packet goes past the gate, or overtakes another.
func (d *device) addFilter(filters []netlink.Filter, queue int) error {
	var first, spare netlink.Filter
	for _, f := range filters {
		switch {
		case !ours(f):
		case f.Attrs().Priority == filterPriority:
			first = f
		default:
			spare = f
		}
	}
	if first != nil && !d.redirects(first) {
		if spare != nil && !d.copies(spare) {
			if err := d.tc.h.FilterDel(spare); err != nil {
				return err
			}
			spare = nil
		}
		if spare == nil {
			f := d.filter(queue, sparePriority)
			if err := d.tc.newFilter(f); err != nil {
				return err
			}
			spare = f
		}
		if err := d.tc.h.FilterDel(first); err != nil {
			return err
		}
		first = nil
	}
	if first == nil {
		if err := d.tc.newFilter(d.filter(queue, filterPriority)); err != nil {
			return err
		}
		d.action = uint32(actionIndex | d.ifb[0].Attrs().Index)
	} else {
		d.action = uint32(redirect(first).Index)
	}
	if spare != nil {
		return d.tc.h.FilterDel(spare)
	}
	return nil
}

// newFilter makes a redirect.
func (t *tc) newFilter(f *netlink.MatchAll) error {
	err := t.h.FilterAdd(f)
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	switch {
	case !t.knows("matchall"):
		return unsupported("matchall classifier", "cls_matchall", err)
	case !t.knows("matchall", swallow()):
		return unsupported("gact action", "act_gact", err)
	}
	return unsupported("mirred action", "act_mirred", err)
}

// redirects reports whether a filter is the redirect of this device as Steer
// needs it.
func (d *device) redirects(f netlink.Filter) bool {
	return f.Attrs().Priority == filterPriority && d.copies(f)
}

// copies reports whether a filter puts copies of packets into a queue of this
// device, and swallows the packets.
func (d *device) copies(f netlink.Filter) bool {
	r := redirect(f)
	if !ours(f) || r == nil || r.Action != netlink.TC_ACT_PIPE || !d.has(r.Ifindex) {
		return false
	}
	as := f.(*netlink.MatchAll).Actions
	if len(as) != 2 {
		return false
	}
	g, ok := as[1].(*netlink.GenericAction)
	return ok && g.Action == netlink.TC_ACT_STOLEN
}

// ours reports whether a filter is the redirect of a gate.
func ours(f netlink.Filter) bool {
	return f.Type() == "matchall" && f.Attrs().Handle == filterHandle
}

// redirect returns the mirred action of a gate's filter, or nil.
func redirect(f netlink.Filter) *netlink.MirredAction {
	if m, ok := f.(*netlink.MatchAll); ok && len(m.Actions) > 0 {
		if r, ok := m.Actions[0].(*netlink.MirredAction); ok {
			return r
		}
	}
	return nil
}

// target returns the index of the ifb that a filter redirects to, or 0.
func target(f netlink.Filter) int {
	if r := redirect(f); r != nil {
		return r.Ifindex
	}
	return 0
}

// failed returns how many packets the mirred action of a gate's filter could not
// redirect, and dropped: the kernel had no memory for the clone, or the queue was
// full, or the ifb is down.
func failed(f netlink.Filter) uint64 {
	r := redirect(f)
	if r == nil || r.Statistics == nil || r.Statistics.Queue == nil {
		return 0
	}
	return uint64(r.Statistics.Queue.Overlimits)
}

package netbuffer

import (
	"encoding/binary"
	"errors"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// replaceMirred makes a mirred action redirect copies to another interface, and
// returns how many filters use the action. The kernel makes the action if there
// is none with this index.
func (t *tc) replaceMirred(index uint32, ifindex int) (bound int, err error) {
	// Without an echo the answer only goes to multicast groups.
	req := t.actionRequest(unix.RTM_NEWACTION, unix.NLM_F_REPLACE|unix.NLM_F_ECHO)
	tab := nl.NewRtAttr(nl.TCA_ACT_TAB, nil)
	act := tab.AddRtAttr(1, nil)
	act.AddRtAttr(nl.TCA_ACT_KIND, nl.ZeroTerminated("mirred"))
	parms := nl.TcMirred{Eaction: int32(netlink.TCA_EGRESS_REDIR), Ifindex: uint32(ifindex)}
	parms.Index, parms.Action = index, int32(netlink.TC_ACT_PIPE)
	act.AddRtAttr(nl.TCA_ACT_OPTIONS, nil).AddRtAttr(nl.TCA_MIRRED_PARMS, parms.Serialize())
	req.AddRawData(tab.Serialize())
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWACTION)
	if err != nil {
		return 0, err
	}
	for _, m := range msgs {
		if n, ok := parseBound(m); ok {
			return n, nil
		}
	}
	return 0, errors.New("the kernel's answer has no mirred action")
}

// deleteMirred deletes a mirred action that no filter uses.
func (t *tc) deleteMirred(index uint32) error {
	req := t.actionRequest(unix.RTM_DELACTION, 0)
	tab := nl.NewRtAttr(nl.TCA_ACT_TAB, nil)
	act := tab.AddRtAttr(1, nil)
	act.AddRtAttr(nl.TCA_ACT_KIND, nl.ZeroTerminated("mirred"))
	act.AddRtAttr(nl.TCA_ACT_INDEX, nl.Uint32Attr(index))
	req.AddRawData(tab.Serialize())
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// actionRequest returns a request about actions, with a struct tcamsg that is
// all zero.
func (t *tc) actionRequest(typ, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(typ, unix.NLM_F_ACK|flags)
	req.Sockets = t.socks
	req.AddRawData(make([]byte, 4))
	return req
}

// parseBound reads, from an RTM_NEWACTION message without the header of netlink,
// how many filters are bound to the mirred action in it. The format is struct
// tcamsg, then TCA_ACT_TAB with an attribute for each action, and in each the
// action's kind and options. struct tc_mirred (linux/tc_act/tc_mirred.h) begins
// with struct tc_gen: index, capab, action, refcnt, bindcnt.
func parseBound(m []byte) (bound int, ok bool) {
	if len(m) < 4 {
		return 0, false
	}
	parms := m[4:]
	for _, typ := range []uint16{nl.TCA_ACT_TAB, 1, nl.TCA_ACT_OPTIONS, nl.TCA_MIRRED_PARMS} {
		if parms = attr(parms, typ); parms == nil {
			return 0, false
		}
	}
	if len(parms) < 20 {
		return 0, false
	}
	return int(int32(binary.NativeEndian.Uint32(parms[16:]))), true
}

// attr returns the value of the first attribute of a type, or nil.
func attr(b []byte, typ uint16) (value []byte) {
	eachAttr(b, func(t uint16, v []byte) bool {
		if t&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) != typ {
			return true
		}
		value = v
		return false
	})
	return value
}

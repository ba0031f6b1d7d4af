package netbuffer

import (
	"bytes"
	"encoding/binary"
)

// The messages of rtnetlink about a plug qdisc, in the byte order of the host.
// Formats: struct tcmsg and struct rtattr in linux/rtnetlink.h, the statistics
// in linux/gen_stats.h, struct tc_plug_qopt in linux/pkt_sched.h.

const (
	tcmsgLen  = 20 // family, ifindex, handle, parent, info
	rtattrLen = 4  // length with this header, type

	tcaKind   = 1 // TCA_KIND: name of the qdisc, with a NUL
	tcaStats2 = 7 // TCA_STATS2: the attributes below

	statsBasic = 1 // TCA_STATS_BASIC: struct gnet_stats_basic
	statsQueue = 3 // TCA_STATS_QUEUE: struct gnet_stats_queue
)

// plugOptions encodes struct tc_plug_qopt { int action; __u32 limit; }, eight
// bytes. The limit counts bytes, and only for plugLimit.
func plugOptions(a Action, limit uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(a))
	return binary.NativeEndian.AppendUint32(b, limit)
}

// parsePlug reads the queue's state from an RTM_NEWQDISC message: a struct
// tcmsg and its attributes, without the header of netlink. ok is false if the
// message is about another kind of qdisc, has no statistics, or is malformed.
func parsePlug(m []byte) (st QueueState, ok bool) {
	if len(m) < tcmsgLen {
		return st, false
	}
	isPlug, hasStats := false, false
	ok = eachAttr(m[tcmsgLen:], func(typ uint16, value []byte) bool {
		switch typ {
		case tcaKind:
			name, _, _ := bytes.Cut(value, []byte{0})
			isPlug = string(name) == "plug"
		case tcaStats2:
			return eachAttr(value, func(typ uint16, value []byte) bool {
				hasStats = st.add(typ, value) || hasStats
				return true
			})
		}
		return true
	})
	return st, ok && isPlug && hasStats
}

// add takes one statistic over and reports whether it was the queue's, which
// every plug has.
func (st *QueueState) add(typ uint16, value []byte) bool {
	ne := binary.NativeEndian
	switch {
	case typ == statsBasic && len(value) >= 12:
		st.Passed = ne.Uint64(value) // bytes, packets
	case typ == statsQueue && len(value) >= 12:
		// qlen, backlog, drops, requeues, overlimits
		st.Packets = uint64(ne.Uint32(value))
		st.Bytes = uint64(ne.Uint32(value[4:]))
		st.Drops = uint64(ne.Uint32(value[8:]))
		return true
	}
	return false
}

// eachAttr calls f with every attribute of b. It stops and returns false where
// f does, or where the length of an attribute can't be right. Attributes are
// aligned to four bytes; the last one may lack its padding.
func eachAttr(b []byte, f func(typ uint16, value []byte) bool) bool {
	for len(b) >= rtattrLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < rtattrLen || n > len(b) {
			return false
		}
		if !f(binary.NativeEndian.Uint16(b[2:]), b[rtattrLen:n]) {
			return false
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return true
}

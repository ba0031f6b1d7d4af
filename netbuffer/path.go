package netbuffer

import "fmt"

// An Action is the action field of struct tc_plug_qopt (linux/pkt_sched.h):
// what a queue does with its packets. A plug knows two more actions: to let out
// as many packets as it counted, which a gate does not use, and to set its
// limit.
type Action int32

const (
	Hold Action = 0 // TCQ_PLUG_BUFFER: keep what comes from now on
	Pass Action = 2 // TCQ_PLUG_RELEASE_INDEFINITE: let out what is there and what comes
)

// plugLimit is an action of the kernel's queues only.
const plugLimit Action = 3 // TCQ_PLUG_LIMIT

func (a Action) String() string {
	switch a {
	case Hold:
		return "hold"
	case Pass:
		return "pass"
	}
	return fmt.Sprintf("action %d", int32(a))
}

// A Path is the way of one vif's packets through a gate: two queues, numbered 0
// and 1, and a switch that sends each arriving packet to one of them. The
// kernel's path is two ifbs with plug qdiscs; netbuffertest has one in memory.
type Path interface {
	// Change makes a queue hold or let out. A gate asks for Hold only while the
	// queue is empty and gets no packets.
	Change(queue int, a Action) error
	// Steer sends arriving packets to queue from now on. Meanwhile no packet is
	// lost, and none goes past both queues.
	Steer(queue int) error
	// Empty reports whether a queue holds no packets and all packets that left
	// the queue have been handed on.
	Empty(queue int) (bool, error)
	// State reads the statistics of a queue.
	State(queue int) (QueueState, error)
}

// A QueueState is the statistics of a queue. Bytes are as qdiscs count them: a
// GSO packet counts with the headers of all its segments.
type QueueState struct {
	Passed  uint64 // bytes that left
	Packets uint64 // waiting
	Bytes   uint64 // of Packets
	Drops   uint64 // packets that found the queue full
}

// What a waiting packet takes, on a machine of 64 bits: its struct sk_buff, and
// a buffer of xen-netback, which has the first 128 bytes of the packet. The
// kernel copies the rest, up to a whole number of pages, when the packet is
// cloned (skb_copy_ubufs in net/core/skbuff.c).
const (
	packetMemory = 256 + 1024
	packetHead   = 128
	pageSize     = 4096
)

// Memory returns how much of the kernel's memory the waiting packets take at
// most, in bytes. For small packets that is many times what they hold.
func (st QueueState) Memory() uint64 {
	larger := min(st.Packets, st.Bytes/packetHead) // so many may have more than a head
	return st.Packets*packetMemory + st.Bytes + larger*pageSize
}

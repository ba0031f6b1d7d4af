package netbuffer

import "fmt"

// An Action is the action field of struct tc_plug_qopt (linux/pkt_sched.h). A
// plug knows two more, to let out as many packets as it counted and to set its
// limit.
type Action int32

const (
	Hold Action = 0 // TCQ_PLUG_BUFFER: keep what comes from now on
	Pass Action = 2 // TCQ_PLUG_RELEASE_INDEFINITE: let out what is there and what comes
)

func (a Action) String() string {
	switch a {
	case Hold:
		return "hold"
	case Pass:
		return "pass"
	}
	return fmt.Sprintf("action %d", int32(a))
}

// A Path is what a vif's packets go through: two queues, and a switch that
// sends what arrives to one of them. It is the kernel's, or a fake.
type Path interface {
	// Change makes a queue, 0 or 1, hold or let out. Hold is only asked of a
	// queue that is empty and gets no packets.
	Change(queue int, a Action) error
	// Steer sends what arrives from now on to queue. No packet is lost or goes
	// past both queues meanwhile.
	Steer(queue int) error
	// Empty reports whether a queue has nothing, and nothing that it had is
	// still on its way.
	Empty(queue int) (bool, error)
	State(queue int) (QueueState, error)
}

// A QueueState is what the statistics of a queue say. Bytes are as qdiscs count
// them: a GSO packet has the headers of all its segments.
type QueueState struct {
	Passed  uint64 // bytes that left
	Packets uint64 // waiting
	Bytes   uint64 // of Packets
	Drops   uint64 // packets that found the queue full
}

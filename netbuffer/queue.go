package netbuffer

import "fmt"

// An Action is the action field of struct tc_plug_qopt (linux/pkt_sched.h).
type Action int32

const (
	// Buffer (TCQ_PLUG_BUFFER) makes the packets counted so far the sealed
	// epoch, and overwrites the count of the one before.
	Buffer Action = 0
	// ReleaseOne (TCQ_PLUG_RELEASE_ONE) lets the sealed epoch out.
	ReleaseOne Action = 1
	// ReleaseIndefinite (TCQ_PLUG_RELEASE_INDEFINITE) lets everything out, and
	// what comes from now on too.
	ReleaseIndefinite Action = 2
)

func (a Action) String() string {
	switch a {
	case Buffer:
		return "buffer"
	case ReleaseOne:
		return "release one"
	case ReleaseIndefinite:
		return "release indefinite"
	}
	return fmt.Sprintf("action %d", int32(a))
}

// A Queue is the plug qdisc of one vif: the kernel's, or a fake.
type Queue interface {
	Change(Action) error
	State() (QueueState, error)
}

// A QueueState is what the kernel's statistics tell about a plug. The plug's
// own counters can't be read. Lengths are qdisc lengths: a GSO packet counts
// the headers of its segments, the same when it comes and when it goes.
type QueueState struct {
	Passed  uint64 // bytes that left since the plug was made
	Packets uint64 // held, or let out and not yet gone
	Bytes   uint64 // of Packets
	Drops   uint64 // packets that found the queue full
}

// arrived is all that ever came, less the drops.
func (s QueueState) arrived() uint64 { return s.Passed + s.Bytes }

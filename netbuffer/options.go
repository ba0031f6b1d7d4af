package netbuffer

import "time"

// Options say how a gate is built. The zero value is good.
type Options struct {
	// Limit is how much of the kernel's memory the waiting packets of a vif may
	// take, in bytes: see QueueState.Memory. 0 means DefaultLimit. The gate says
	// how much they take (Gate.Held) and drops nothing at the limit: whoever
	// reads that the limit is reached must keep the domain from sending more. As
	// a last resort a queue drops packets when their own bytes are four times
	// the limit, and 256 MiB at least.
	Limit uint64

	// Vifs names interfaces of the domain that neither their name nor sysfs
	// tells, for example vifs of another driver. They must exist.
	Vifs []string

	// Devices are the numbers of the network devices that the domain has. Each
	// must have an interface here, or Open returns a NoVifError. See
	// Gate.Missing too.
	Devices []int

	// Quiesce keeps the domain from sending until resume is called. Close calls
	// Quiesce for the moment in which it removes the redirects: a packet that
	// no longer goes through the gate could otherwise overtake one that does.
	// If Quiesce is nil, Close may reorder.
	Quiesce func() (resume func(), err error)

	// Timeout bounds each wait for released packets to leave. 0 means
	// DefaultTimeout.
	Timeout time.Duration

	// Watch is the best way in which the gate may notice that the domain sends:
	// see Gate.Events. "" means EBPF. If the kernel or the process's rights don't
	// allow it, the gate takes the next best: see Gate.Watching.
	Watch Way

	// Nap sleeps between two looks at a queue; the domain may be suspended
	// meanwhile. nil means nanosleep(2), which keeps to the 50 microseconds it
	// is asked for. A simulation with a clock of its own, such as a bubble of
	// testing/synctest, gives time.Sleep.
	Nap func(time.Duration)

	drop uint32 // for tests: the ceiling
}

const (
	// DefaultLimit is what a 1 Gbit/s interface sends in half a second, in
	// bytes, and leaves a host with a few gigabytes room for many domains.
	DefaultLimit = 64 << 20

	// leastCeiling is the least number of bytes at which a queue drops.
	leastCeiling = 256 << 20

	// DefaultTimeout bounds waits for packets to leave.
	DefaultTimeout = time.Second

	// linger is how long Release waits for packets to leave, so that the next
	// Seal, in the domain's pause, need not wait.
	linger = 10 * time.Millisecond

	// quiet is how long a vif must have sent nothing, while its domain is
	// suspended or after its redirect was removed, until it counts as silent.
	quiet = 10 * time.Millisecond

	// napTime is the time between two looks at a queue.
	napTime = 50 * time.Microsecond
)

func (o Options) nap() {
	if o.Nap != nil {
		o.Nap(napTime)
		return
	}
	nanosleep(napTime)
}

func (o Options) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultTimeout
}

func (o Options) limit() uint64 {
	if o.Limit > 0 {
		return o.Limit
	}
	return DefaultLimit
}

// ceiling is the limit of a queue itself: what tc_plug_qopt takes.
func (o Options) ceiling() uint32 {
	if o.drop > 0 {
		return o.drop
	}
	return uint32(min(max(leastCeiling, 4*min(o.limit(), 1<<32)), 1<<32-1))
}

package netbuffer

import "time"

// Options say how a gate is built. The zero value is good.
type Options struct {
	// Limit is how many bytes of one epoch a vif may have waiting; the gate
	// drops further packets. 0 means DefaultLimit.
	Limit uint32

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

	// Nap sleeps between two looks at a queue; the domain may be suspended
	// meanwhile. nil means nanosleep(2), which keeps to the 50 microseconds it
	// is asked for. A simulation with a clock of its own, such as a bubble of
	// testing/synctest, gives time.Sleep.
	Nap func(time.Duration)
}

const (
	// DefaultLimit is what a 10 Gbit/s interface sends in 250 ms, in bytes: far
	// more than an epoch takes.
	DefaultLimit = 10_000_000_000 / 8 / 4

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

func (o Options) limit() uint32 {
	if o.Limit > 0 {
		return o.Limit
	}
	return DefaultLimit
}

// Package netbuffertest has a vif's path through a gate without a kernel, for
// tests and simulations of code that uses netbuffer.
//
// A path stands for what the kernel keeps, so it outlives the gate on it. If a
// simulated process dies, forget its netbuffer.Gate. The next process looks at
// the paths as netbuffer.Open does at the kernel's queues: if any path of the
// domain is Holding it makes the gate with netbuffer.Adopt, otherwise with
// netbuffer.New, and gives Current in each netbuffer.Vif.
package netbuffertest

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"xlft/netbuffer"
)

// A Path is a netbuffer.Watcher whose two queues behave like plug qdiscs on ifbs.
// A packet of an open queue leaves at once. If Slow is set it stays until Step,
// or until a gate that waits asks whether the queue is Empty. The methods may
// be called from several goroutines.
type Path struct {
	// Limit is how many bytes may wait in a queue; 0 means no limit.
	Limit uint64

	mu      sync.Mutex
	out     func(packet []byte)
	current int
	q       [2]queue
	fail    error
	slow    bool
	past    bool // packets go past the queues
}

type queue struct {
	packets [][]byte
	open    bool
	state   netbuffer.QueueState
	first   func() // called for the next packet
}

// errDestroyed is what the methods of netbuffer.Path return after Destroy.
var errDestroyed = errors.New("no such queue: the path was destroyed")

// NewPath returns a path as netbuffer.New wants it. Packets that leave go to
// out, which is called with the path's lock held.
func NewPath(out func(packet []byte)) *Path {
	p := &Path{out: out}
	p.q[0].open = true
	return p
}

// Slow makes the packets of an open queue wait for Step or Empty.
func (p *Path) Slow(slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = slow
}

// Bypass removes the redirect to the queues, as some other program may: packets
// leave at once, and Steer and State return netbuffer.ErrBypassed, so that Seal
// and Held do. What waits in the queues goes on waiting. With false the redirect
// is there again.
func (p *Path) Bypass(past bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.past = past
}

// Send is the domain sending a packet, which the path keeps.
func (p *Path) Send(packet []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail == errDestroyed {
		return
	}
	if p.past {
		p.out(packet)
		return
	}
	q := &p.q[p.current]
	n := uint64(len(packet))
	if p.Limit > 0 && q.state.Bytes+n > p.Limit {
		q.state.Drops++
		return
	}
	q.packets = append(q.packets, packet)
	q.state.Packets++
	q.state.Bytes += n
	if q.first != nil {
		q.first()
		q.first = nil
	}
	p.run()
}

func (p *Path) run() {
	for i := range p.q {
		for !p.slow && p.step(i) {
		}
	}
}

// Step lets one packet of an open queue out, and reports whether it had one.
func (p *Path) Step(queue int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.step(queue)
}

func (p *Path) step(i int) bool {
	q := &p.q[i]
	if !q.open || len(q.packets) == 0 {
		return false
	}
	packet := q.packets[0]
	q.packets = q.packets[1:]
	n := uint64(len(packet))
	q.state.Packets--
	q.state.Bytes -= n
	q.state.Passed += n
	p.out(packet)
	return true
}

// Change is for netbuffer.Path.
func (p *Path) Change(queue int, a netbuffer.Action) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	if a != netbuffer.Hold && a != netbuffer.Pass {
		return fmt.Errorf("%v: invalid argument", a)
	}
	p.q[queue].open = a == netbuffer.Pass
	p.run()
	return nil
}

// Steer is for netbuffer.Path.
func (p *Path) Steer(queue int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	if p.past {
		return netbuffer.ErrBypassed
	}
	p.current = queue
	return nil
}

// Empty is for netbuffer.Path. It lets a packet out, so that waiting ends.
func (p *Path) Empty(queue int) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return false, p.fail
	}
	empty := len(p.q[queue].packets) == 0
	p.step(queue)
	return empty, nil
}

// State is for netbuffer.Path.
func (p *Path) State(queue int) (netbuffer.QueueState, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.past && p.fail == nil {
		return p.q[queue].state, netbuffer.ErrBypassed
	}
	return p.q[queue].state, p.fail
}

// Watch is for netbuffer.Watcher.
func (p *Path) Watch(queue int, first func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.q[queue].first = first
}

// Watching is for netbuffer.Watcher.
func (p *Path) Watching() (netbuffer.Way, error) { return "memory", nil }

// Fail makes every later call of netbuffer.Path fail with err, or work again
// if err is nil.
func (p *Path) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != errDestroyed {
		p.fail = err
	}
}

// Current returns the queue that gets packets, 0 or 1.
func (p *Path) Current() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// Holding reports whether the current queue holds. It stands for the alias in
// which the kernel's ifbs keep for the next process that the gate holds.
func (p *Path) Holding() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fail != errDestroyed && !p.q[p.current].open
}

// Open reports whether a packet that is sent now leaves at once: the current
// queue does not hold, or nothing leads to it, and the path was not destroyed.
func (p *Path) Open() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fail != errDestroyed && (p.past || p.q[p.current].open)
}

// Waiting returns the packets in both queues, in the order in which the domain
// sent them: first those of the queue that does not get packets at present.
func (p *Path) Waiting() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Concat(p.q[1-p.current].packets, p.q[p.current].packets)
}

// Purge drops the packets in both queues, which go on as they are.
func (p *Path) Purge() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.q {
		q := &p.q[i]
		q.packets, q.state.Packets, q.state.Bytes = nil, 0, 0
	}
}

// Destroy drops all packets in the queues, and every packet that is sent later:
// the kernel destroyed the queues, and the redirect leads nowhere. The methods
// of netbuffer.Path fail from now on. A vif that gets a gate again needs a new
// path.
func (p *Path) Destroy() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.q, p.fail = [2]queue{}, errDestroyed
}

// Package netbuffertest is a vif's path through a gate without a kernel, for
// tests of what stands on netbuffer.
package netbuffertest

import (
	"fmt"
	"sync"

	"xlft/netbuffer"
)

// A Path has two queues that behave like plug qdiscs on ifbs. A queue that was
// opened does not run empty at once: packets leave when Step says so, or
// somebody waits for them.
type Path struct {
	// Limit is how many bytes may wait in a queue; 0 means no limit.
	Limit uint64

	mu   sync.Mutex
	out  func(packet []byte)
	to   int
	q    [2]queue
	fail error
	slow bool
}

type queue struct {
	packets [][]byte
	open    bool
	state   netbuffer.QueueState
}

// NewPath returns a path that lets everything out, to out, which is called
// with a lock held.
func NewPath(out func(packet []byte)) *Path {
	p := &Path{out: out}
	p.q[0].open = true
	return p
}

// Slow makes packets of an open queue wait for Step or Empty.
func (p *Path) Slow(slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = slow
}

// Send is the domain sending a packet.
func (p *Path) Send(packet []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := &p.q[p.to]
	n := uint64(len(packet))
	if p.Limit > 0 && q.state.Bytes+n > p.Limit {
		q.state.Drops++
		return
	}
	q.packets = append(q.packets, packet)
	q.state.Packets++
	q.state.Bytes += n
	p.run()
}

func (p *Path) run() {
	for i := range p.q {
		for !p.slow && p.step(i) {
		}
	}
}

// Step lets one packet of an open queue out, if there is one.
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

// Change is netbuffer.Path's.
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

// Steer is netbuffer.Path's.
func (p *Path) Steer(queue int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.to = queue
	return nil
}

// Empty is netbuffer.Path's. It lets a packet out, so that waiting ends.
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

// State is netbuffer.Path's.
func (p *Path) State(queue int) (netbuffer.QueueState, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.q[queue].state, p.fail
}

// Fail makes every later call of netbuffer.Path fail with err, or work again
// if it is nil.
func (p *Path) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

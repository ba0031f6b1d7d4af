// Package netbuffertest is a plug qdisc without a kernel, for tests of what
// stands on netbuffer.
package netbuffertest

import (
	"fmt"
	"sync"

	"xlft/netbuffer"
)

// A Queue counts like the kernel's sch_plug: what it lets out when, and what it
// forgets, is the same. Packets go out in the goroutine that causes it.
type Queue struct {
	// Limit is how many bytes may wait; 0 means no limit.
	Limit uint64

	mu      sync.Mutex
	out     func(packet []byte)
	packets [][]byte
	bytes   uint64
	passed  uint64
	drops   uint64
	fail    error

	indefinite bool
	current    int // packets of the running epoch
	last       int // of the sealed one
	release    int // to let out
}

// NewQueue returns a queue that lets everything out, to out.
func NewQueue(out func(packet []byte)) *Queue {
	return &Queue{out: out, indefinite: true}
}

// Send puts a packet into the queue, as the domain does.
func (q *Queue) Send(packet []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := uint64(len(packet))
	if q.Limit > 0 && q.bytes+n > q.Limit {
		q.drops++
		return
	}
	if !q.indefinite {
		q.current++
	}
	q.packets = append(q.packets, packet)
	q.bytes += n
	q.dequeue()
}

func (q *Queue) dequeue() {
	for len(q.packets) > 0 && (q.indefinite || q.release > 0) {
		if !q.indefinite {
			q.release--
		}
		p := q.packets[0]
		q.packets = q.packets[1:]
		q.bytes -= uint64(len(p))
		q.passed += uint64(len(p))
		q.out(p)
	}
}

// Change does what plug_change does.
func (q *Queue) Change(a netbuffer.Action) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fail != nil {
		return q.fail
	}
	switch a {
	case netbuffer.Buffer:
		q.last, q.current = q.current, 0
		q.indefinite = false
	case netbuffer.ReleaseOne:
		q.release += q.last
		q.last = 0
	case netbuffer.ReleaseIndefinite:
		q.indefinite = true
		q.current, q.last, q.release = 0, 0, 0
	default:
		return fmt.Errorf("%v: invalid argument", a)
	}
	q.dequeue()
	return nil
}

// State is netbuffer.Queue's.
func (q *Queue) State() (netbuffer.QueueState, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return netbuffer.QueueState{Passed: q.passed, Packets: uint64(len(q.packets)), Bytes: q.bytes, Drops: q.drops}, q.fail
}

// Fail makes every later call fail with err, or work again if it is nil.
func (q *Queue) Fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fail = err
}

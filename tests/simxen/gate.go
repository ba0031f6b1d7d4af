package simxen

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"xlft/xlft"
)

// A Gate holds a domain's packets with the three counters of the kernel's
// sch_plug, one sealed epoch at most. It outlives the process that made it.
type Gate struct {
	w     *World
	mu    sync.Mutex
	queue []held

	holding bool
	current int // packets of the open epoch
	sealed  int // packets of the sealed epoch
	epoch   uint64
	pending bool // an epoch is sealed
	release int
	closed  bool
	speaks  atomic.Bool // !holding && !closed, for those who hold other locks
}

type held struct {
	l *life
	p Packet
}

// Limit is how many packets a gate holds, at 1 KiB each.
const Limit = 4096

var (
	errSealed = errors.New("simxen: an epoch is sealed already")
	errOrder  = errors.New("simxen: seal of an epoch that was sealed before")
)

// send is the domain's way out.
func (g *Gate) send(l *life, p Packet) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.w.sent(l)
	if len(g.queue) >= Limit {
		return // dropped; the checks will tell
	}
	g.queue = append(g.queue, held{l, p})
	if g.holding {
		g.current++
	}
	g.flow()
}

func (g *Gate) flow() {
	g.speaks.Store(!g.holding && !g.closed)
	for len(g.queue) > 0 && (!g.holding || g.release > 0) {
		if g.holding {
			g.release--
		}
		h := g.queue[0]
		g.queue = g.queue[1:]
		g.w.deliver(h.l, h.p)
	}
}

func (g *Gate) seal(epoch uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending {
		return errSealed
	}
	if epoch <= g.epoch {
		return errOrder
	}
	g.holding, g.pending, g.epoch = true, true, epoch
	g.sealed, g.current = g.current, 0
	g.flow()
	return nil
}

func (g *Gate) releaseOne(epoch uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.pending || g.epoch != epoch {
		return errors.New("simxen: release of an epoch that is not sealed")
	}
	g.pending = false
	g.release += g.sealed
	g.sealed = 0
	g.flow()
	return nil
}

func (g *Gate) abandon() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding, g.pending, g.epoch = false, false, 0
	g.current, g.sealed, g.release = 0, 0, 0
	g.flow()
}

func (g *Gate) discard() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = nil
	g.closed = true
	g.flow()
}

// Waiting returns how many packets are held.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.queue)
}

// output is a process's hand on a gate.
type output struct {
	p *Process
	g *Gate
}

// Output gives a domain's gate as xlft wants it.
func (p *Process) Output(d *Domain) xlft.Output { return &output{p, d.gate} }

func (o *output) do(f func() error) error {
	o.p.h.work()
	if o.p.Dead() {
		return errDead
	}
	return f()
}

func (o *output) Seal(e uint64) error    { return o.do(func() error { return o.g.seal(e) }) }
func (o *output) Release(e uint64) error { return o.do(func() error { return o.g.releaseOne(e) }) }
func (o *output) Abandon() error         { return o.do(func() error { o.g.abandon(); return nil }) }
func (o *output) Close() error           { return o.Abandon() }
func (o *output) Discard() error         { return o.do(func() error { o.g.discard(); return nil }) }
func (o *output) Drain(context.Context) error {
	return o.do(func() error { return nil }) // what is released has left
}

func (o *output) Held() (held, limit uint64, err error) {
	return uint64(o.g.Waiting()) << 10, Limit << 10, nil
}

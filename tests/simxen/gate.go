package simxen

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"xlft/netbuffer"
	"xlft/netbuffer/netbuffertest"
	"xlft/xlft"
)

// A vif is a domain's network interface and the kernel's part of its gate: the two queues and the redirect. These
// outlive the process that has the gate.
type vif struct {
	outside *Outside
	path    *netbuffertest.Path
	// speaks says whether packets leave at once. It is a copy for callers that hold locks that a leaving packet takes.
	speaks atomic.Bool
}

func newVif(o *Outside) *vif {
	v := &vif{outside: o}
	v.path = netbuffertest.NewPath(func(b []byte) { o.deliver(unpack(b)) })
	v.path.Limit = queueLimit
	v.speaks.Store(true)
	return v
}

// queueLimit is the size of a queue in bytes, more than a domain sends in an epoch; memoryLimit is the memory for as many
// packets.
const queueLimit = 4096 * packetLen

var memoryLimit = netbuffer.QueueState{Packets: 4096, Bytes: queueLimit}.Memory()

// packetLen is the length of a packet: the life that sent it, its count and its checksum, u64 each.
const packetLen = 24

func pack(l *life, p Packet) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(l.id))
	b = binary.LittleEndian.AppendUint64(b, p.Count)
	return binary.LittleEndian.AppendUint64(b, p.Sum)
}

func unpack(b []byte) (life int, p Packet) {
	return int(binary.LittleEndian.Uint64(b)), Packet{binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
}

// send sends a packet of the domain into its gate.
func (v *vif) send(l *life, p Packet) {
	v.outside.sent(l, p)
	v.path.Send(pack(l, p))
}

// changed updates speaks after a process changed the queues.
func (v *vif) changed() { v.speaks.Store(v.path.Open()) }

// destroy removes the queues: held packets are dropped, and so are packets sent later.
func (v *vif) destroy() {
	v.path.Destroy()
	v.changed()
}

// processPath is a process's handle on a vif's queues. After the death of the process it has no effect.
type processPath struct {
	p *Process
	v *vif
}

func (h processPath) do(f func() error) error {
	if h.p.Dead() {
		return errDead
	}
	defer h.v.changed()
	return f()
}

func (h processPath) Change(queue int, a netbuffer.Action) error {
	return h.do(func() error { return h.v.path.Change(queue, a) })
}

func (h processPath) Steer(queue int) error {
	return h.do(func() error { return h.v.path.Steer(queue) })
}

func (h processPath) Empty(queue int) (empty bool, err error) {
	err = h.do(func() error { empty, err = h.v.path.Empty(queue); return err })
	return empty, err
}

func (h processPath) State(queue int) (st netbuffer.QueueState, err error) {
	err = h.do(func() error { st, err = h.v.path.State(queue); return err })
	return st, err
}

// Watch is for netbuffer.Watcher.
func (h processPath) Watch(queue int, first func()) {
	_ = h.do(func() error { h.v.path.Watch(queue, first); return nil })
}

// Watching is for netbuffer.Watcher.
func (h processPath) Watching() (netbuffer.Way, error) { return h.v.path.Watching() }

// gate is a domain's network gate in a process: a netbuffer.Gate whose calls take the host's time.
type gate struct {
	*netbuffer.Gate
	p *Process
	v *vif
}

// Gate opens a domain's network gate, or adopts the queues that an earlier process left, as netbuffer.Open does on a
// real host.
func (p *Process) Gate(d *Domain) xlft.Gate {
	opts := netbuffer.Options{Limit: memoryLimit, Nap: time.Sleep}
	v := netbuffer.Vif{Name: "vif1.0", Path: processPath{p, d.vif}, Current: d.vif.path.Current()}
	g := &gate{p: p, v: d.vif}
	if d.vif.path.Holding() {
		g.Gate = netbuffer.Adopt(opts, v)
	} else {
		g.Gate = netbuffer.New(opts, v)
	}
	return g
}

func (g *gate) do(f func() error) error {
	g.p.h.work()
	if g.p.Dead() {
		return errDead
	}
	return f()
}

func (g *gate) Seal(e uint64) error    { return g.do(func() error { return g.Gate.Seal(e) }) }
func (g *gate) Release(e uint64) error { return g.do(func() error { return g.Gate.Release(e) }) }
func (g *gate) ReleaseAll() error      { return g.do(g.Gate.ReleaseAll) }
func (g *gate) Close() error           { return g.do(g.Gate.Close) }

func (g *gate) Drain(ctx context.Context) error {
	return g.do(func() error { return g.Gate.Drain(ctx) })
}

// Purge drops held packets. A variant that breaks P5 uses it.
func (g *gate) Purge() { g.v.path.Purge() }

// Discard also destroys the queues, as the kernel does on a real host.
func (g *gate) Discard() error {
	return g.do(func() error {
		err := g.Gate.Discard()
		g.v.destroy()
		return err
	})
}

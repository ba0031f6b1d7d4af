package netbuffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A program watches a queue, at clsact egress of the ifb: behind the redirect and
// in front of the plug, where it sees what the gate takes in and nothing else. It
// changes no packet. What it has to know is in a map of one cell:
//
//	armed, uint64   number of the watch; only we write it
//	told, uint64    number of the watch that has had its record; the program's
//
// Each side writes its own word. If the program's store, on another CPU, comes
// late, there is a record too many, and none is lost. For the same reason an
// atomic exchange, which would save some records, is not needed.
// (cilium/ebpf up to 0.22 encodes it as an addition.)

// ringSize is in bytes, whole pages of any machine. A record takes 16, and there
// is about one for each vif and epoch.
const ringSize = 1 << 16

// wake is BPF_RB_FORCE_WAKEUP of linux/bpf.h.
const wake = 2

// lookAt returns the program of a cell. It leaves it to other filters, if there
// are any, what becomes of the packet.
func lookAt(cell, ring *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapValue(asm.R6, cell.FD(), 0),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.DWord), // armed
		asm.LoadMem(asm.R1, asm.R6, 8, asm.DWord), // told
		asm.JEq.Reg(asm.R7, asm.R1, "out"),
		asm.StoreMem(asm.RFP, -8, asm.R7, asm.DWord),
		asm.LoadMapPtr(asm.R1, ring.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		asm.Mov.Imm(asm.R3, 8),
		asm.Mov.Imm(asm.R4, wake),
		asm.FnRingbufOutput.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"), // no room: the next packet tries again
		asm.StoreMem(asm.R6, 8, asm.R7, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // TC_ACT_UNSPEC
		asm.Return(),
	}
}

// A ring has the records of a gate's programs: the numbers of the watches whose
// first packet came.
type ring struct {
	m    *ebpf.Map
	r    *ringbuf.Reader
	done chan struct{}

	mu    sync.Mutex
	err   error // of the reader, which ended
	last  uint64
	first map[uint64]func() // by number of the watch
}

func newRing() (*ring, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "xlft", Type: ebpf.RingBuf, MaxEntries: ringSize})
	if err != nil {
		return nil, err
	}
	r, err := ringbuf.NewReader(m)
	if err != nil {
		m.Close()
		return nil, err
	}
	g := &ring{m: m, r: r, done: make(chan struct{}), first: map[uint64]func(){}}
	go g.run()
	return g, nil
}

func (g *ring) run() {
	defer close(g.done)
	var rec ringbuf.Record
	for {
		err := g.r.ReadInto(&rec)
		if err == nil && len(rec.RawSample) < 8 {
			err = fmt.Errorf("record of %d bytes", len(rec.RawSample))
		}
		if err != nil {
			g.end(err)
			return
		}
		if first := g.take(binary.NativeEndian.Uint64(rec.RawSample)); first != nil {
			first()
		}
	}
}

// take returns what is to be called for a record. It is nil if the watch is over
// or had a record.
func (g *ring) take(n uint64) (first func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	first = g.first[n]
	delete(g.first, n)
	return first
}

// end notes that nobody reads any more, and calls everybody: their packets may
// have come.
func (g *ring) end(err error) {
	g.mu.Lock()
	first := g.first
	g.first, g.err = nil, err
	g.mu.Unlock()
	if errors.Is(err, os.ErrClosed) {
		return
	}
	for _, f := range first {
		f()
	}
}

// await gives a watch its number. old is the number of the watch that ends.
func (g *ring) await(old uint64, first func()) (n uint64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return 0, fmt.Errorf("read ring: %w", g.err)
	}
	delete(g.first, old)
	g.last++
	g.first[g.last] = first
	return g.last, nil
}

func (g *ring) close() {
	g.r.Close()
	<-g.done
	g.m.Close()
}

// A programTap has a program at each ifb of a device.
type programTap struct {
	ring  *ring
	cell  [2]*ebpf.Map // nil where there is no ifb
	armed [2]uint64
}

// program makes the programs of a device, in place of those that an earlier
// process left.
func (ts *taps) program(d *device) (*programTap, error) {
	if ts.ring == nil {
		ring, err := newRing()
		if err != nil {
			return nil, fmt.Errorf("make ring: %w", err)
		}
		ts.ring = ring
	}
	t := &programTap{ring: ts.ring}
	for i, ifb := range d.ifb {
		if ifb == nil {
			continue
		}
		if err := t.attach(d.tc, i, ifb); err != nil {
			t.close()
			return nil, err
		}
	}
	return t, nil
}

func (t *programTap) attach(c *tc, queue int, ifb netlink.Link) error {
	cell, err := ebpf.NewMap(&ebpf.MapSpec{Name: "xlft", Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("make map: %w", err)
	}
	t.cell[queue] = cell
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "xlft", Type: ebpf.SchedCLS, License: "LGPL-2.1", Instructions: lookAt(cell, t.ring.m)})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	defer p.Close() // the filter has it
	if !c.hasQdisc(ifb) {
		return fmt.Errorf("%s was made without a clsact qdisc", ifb.Attrs().Name)
	}
	err = c.h.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifb.Attrs().Index,
			Handle:    filterHandle,
			Parent:    netlink.HANDLE_MIN_EGRESS,
			Priority:  filterPriority,
			Protocol:  unix.ETH_P_ALL,
		},
		Fd:           p.FD(),
		Name:         "xlft",
		DirectAction: true,
	})
	return unsupported("bpf classifier", "cls_bpf", err)
}

func (t *programTap) way() Way { return EBPF }

func (t *programTap) arm(queue int, first func()) error {
	n, err := t.ring.await(t.armed[queue], first)
	if err != nil {
		return err
	}
	t.armed[queue] = n
	return t.cell[queue].Put(uint32(0), [2]uint64{n, 0})
}

func (t *programTap) close() {
	for i, c := range t.cell {
		if c != nil {
			t.ring.take(t.armed[i])
			c.Close()
		}
	}
}

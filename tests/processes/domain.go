package processes

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"xlft/netbuffer/netbuffertest"
)

const (
	pageSize = 4096
	pages    = 33
	slots    = 32 * 8 // registers; those of old keys are used again
)

// A domain is a domain of a simulated hypervisor. The world's lock guards it.
type domain struct {
	id       uint32
	name     string
	config   []byte
	host     *host
	mem      [][]byte
	dirty    map[uint64]bool
	limit    uint64
	replica  bool  // made by a restore
	complete bool  // by its restore
	life     *life // nil until it runs
	paused   int   // as Xen counts
	asleep   bool  // suspended
	gone     bool
	path     *netbuffertest.Path
	input    []request // arrived while it stood still
}

// A request is what a client sends: an operation on a register.
type request struct {
	id       uint64
	op       op
	key      uint64
	val, old uint64
}

// A reply is what the domain answers, as the packet holds it.
type reply struct {
	life, count uint64 // of which life, at which of its steps
	id          uint64 // of the request
	val         uint64
	ok          uint64 // whether a swap took place
}

type op byte

// probe is a key that has no register.
const probe = 0

const (
	read op = iota
	write
	swap // compare and swap
)

func (d *domain) runs() bool { return d.life != nil && !d.gone && d.paused == 0 && !d.asleep }

// Page 0 has the count of the domain's steps and the number of its life.
func (d *domain) count() uint64  { return binary.LittleEndian.Uint64(d.mem[0]) }
func (d *domain) lifeID() uint64 { return binary.LittleEndian.Uint64(d.mem[0][8:]) }

func (d *domain) put(page, at int, v uint64) {
	binary.LittleEndian.PutUint64(d.mem[page][at:], v)
	d.dirty[uint64(page)] = true
}

// take lets a request reach the domain.
func (d *domain) take(r request) {
	if !d.runs() {
		if d.life != nil && !d.gone && len(d.input) < 1000 {
			d.input = append(d.input, r)
		}
		return
	}
	d.put(0, 0, d.count()+1)
	slot := int(r.key % slots)
	page, at := 1+slot%(pages-1), slot/(pages-1)*24
	if r.key != probe && binary.LittleEndian.Uint64(d.mem[page][at:]) != r.key {
		d.put(page, at, r.key)
		d.put(page, at+8, 0)
	}
	is := binary.LittleEndian.Uint64(d.mem[page][at+8:])
	a := reply{life: d.lifeID(), count: d.count(), id: r.id, val: is}
	if r.op == write || r.op == swap && is == r.old {
		d.put(page, at+8, r.val)
		a.ok = 1
	}
	d.host.w.outmu.Lock()
	d.life.sent++
	d.host.w.outmu.Unlock()
	d.path.Send(a.pack())
}

// goOn lets what waited reach a domain that runs on.
func (d *domain) goOn() {
	if !d.runs() {
		return
	}
	in := d.input
	d.input = nil
	for _, r := range in {
		d.take(r)
	}
}

// takeLog returns the pages written since the last call.
func (d *domain) takeLog() []uint64 {
	pfns := slices.Sorted(maps.Keys(d.dirty))
	clear(d.dirty)
	return pfns
}

// read returns pages as they are now.
func (d *domain) read(pfns []uint64) (data []byte, err error) {
	for _, p := range pfns {
		if p >= uint64(len(d.mem)) {
			return nil, fmt.Errorf("page %d is not the domain's", p)
		}
		data = append(data, d.mem[p]...)
	}
	return data, nil
}

func (a reply) pack() []byte {
	var b []byte
	for _, v := range []uint64{a.life, a.count, a.id, a.val, a.ok} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func unpack(b []byte) (a reply) {
	for i, v := range []*uint64{&a.life, &a.count, &a.id, &a.val, &a.ok} {
		*v = binary.LittleEndian.Uint64(b[8*i:])
	}
	return a
}

package primary

import (
	"math/bits"
	"sync"
	"time"

	"xlft/savestream/lines"
	"xlft/xlft/wire"
)

// An output makes pieces of epochs small before they go to the backup: by what changed, if
// the backup does that too, and compressed while the network is what takes longest.
//
// Whether it pays to compress is seen in the first copy by each body, since the wire is busy
// all the time then, and later by each epoch until its ack: a small epoch waits in the
// kernel's buffers only.
type output struct {
	lines *lines.Encoder // nil: not agreed
	coded []byte

	mu     sync.Mutex
	pack   packing
	epoch  uint64 // of the newest body
	packed bool   // what its bodies are
	begun  time.Time
	size   int
	before int // size of the epoch before, after the first copy
}

func newOutput(pack bool, pageCache int64) *output {
	o := &output{pack: packing{allowed: pack}}
	if pageCache > 0 {
		o.lines = lines.NewEncoder(pageCache)
	}
	return o
}

// write sends a piece of epoch e, and returns how many bytes that took on the wire.
func (o *output) write(c *wire.Conn, e uint64, piece []byte) (int, error) {
	body, coded := piece, false
	if o.lines != nil {
		var err error
		if o.coded, err = o.lines.Encode(o.coded[:0], piece); err != nil {
			return 0, err
		}
		if len(o.coded) == 0 {
			return 0, nil // a part of a page, which waits for the rest
		}
		body, coded = o.coded, true
	}
	pack := o.packs(e, len(body))
	begun := time.Now()
	n, err := c.WriteData(e, body, coded, pack)
	if e == firstEpoch && err == nil {
		o.mu.Lock()
		o.pack.took(pack, len(body), time.Since(begun))
		o.mu.Unlock()
	}
	return n, err
}

const firstEpoch = 1

// packs says whether the next body of an epoch is to be compressed.
func (o *output) packs(e uint64, size int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e == firstEpoch {
		return o.pack.next(size)
	}
	if o.epoch != e {
		o.epoch, o.begun, o.size = e, time.Now(), 0
		o.packed = o.pack.next(o.before)
	}
	o.size += size
	return o.packed && size >= packLeast
}

// acked says that the backup has an epoch.
func (o *output) acked(e uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e != firstEpoch && e == o.epoch {
		o.before = o.size
		o.pack.took(o.packed, o.size, time.Since(o.begun))
	}
}

// memory is how many bytes the pages that are kept take.
func (o *output) memory() int64 {
	if o.lines == nil {
		return 0
	}
	return o.lines.Memory()
}

// A packing decides what is compressed: what takes less time for each byte then, the wait
// for the network included. To know the time of both it does the other every now and then.
// What is of another size is known by itself, since small things take their time for other
// reasons.
type packing struct {
	allowed bool
	sizes   [bits.UintSize + 1]packTimes // by the length of the size in bits
}

type packTimes struct {
	count uint       // so far
	per   [2]float64 // nanoseconds a byte, unpacked and packed; a moving average
	known [2]uint    // how many that is of
}

const (
	packLeast = 1 << 10 // bytes below which nothing is worth it
	packProbe = 16      // every so many the other way is tried
	packFirst = 4       // of so many each time has to be known
	packShare = 4       // the newest's share in the average, inverted
	packGain  = 0.9     // of the time has to be what it takes packed: it takes the processor, too
)

// next says whether what comes next, of so many bytes, is to be compressed.
func (p *packing) next(size int) bool {
	if !p.allowed || size < packLeast {
		return false
	}
	t := &p.sizes[bits.Len(uint(size))]
	t.count++
	switch {
	case t.known[1] < packFirst:
		return true
	case t.known[0] < packFirst:
		return false
	}
	return (t.per[1] < packGain*t.per[0]) != (t.count%packProbe == 0)
}

// took says how long it took.
func (p *packing) took(packed bool, size int, d time.Duration) {
	if !p.allowed || size < packLeast {
		return
	}
	t, i := &p.sizes[bits.Len(uint(size))], 0
	if packed {
		i = 1
	}
	per := float64(d) / float64(size)
	if t.known[i] < packFirst {
		t.known[i]++
		t.per[i] += (per - t.per[i]) / float64(t.known[i])
		return
	}
	t.per[i] += (per - t.per[i]) / packShare
}

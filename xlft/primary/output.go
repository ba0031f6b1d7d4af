package primary

import (
	"time"

	"xlft/savestream/lines"
	"xlft/xlft/wire"
)

// An output makes pieces of epochs small before they go to the backup: by what changed, if
// the backup does that too, and compressed while the network is what takes longest.
type output struct {
	lines *lines.Encoder // nil: not agreed
	coded []byte
	pack  packing
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
	pack := o.pack.next(len(body))
	begun := time.Now()
	n, err := c.WriteData(e, body, coded, pack)
	if err == nil {
		o.pack.took(pack, len(body), time.Since(begun))
	}
	return n, err
}

// memory is how many bytes the pages that are kept take.
func (o *output) memory() int64 {
	if o.lines == nil {
		return 0
	}
	return o.lines.Memory()
}

// A packing decides which bodies are compressed: whatever takes less time for each byte, the
// wait for the network included. To know the time of both it does the other every now and
// then.
type packing struct {
	allowed bool
	count   uint       // bodies so far
	per     [2]float64 // nanoseconds a byte, unpacked and packed; a moving average
	known   [2]uint    // bodies that it is of
}

const (
	packLeast = 1 << 10 // bytes below which a body is not worth it
	packProbe = 16      // every so many bodies the other way is tried
	packFirst = 4       // bodies of which each time has to be known
	packShare = 4       // a body's share in the average, inverted
)

// next says whether the next body, of so many bytes, is to be compressed.
func (p *packing) next(size int) bool {
	if !p.allowed || size < packLeast {
		return false
	}
	p.count++
	switch {
	case p.known[1] < packFirst:
		return true
	case p.known[0] < packFirst:
		return false
	}
	return (p.per[1] < p.per[0]) != (p.count%packProbe == 0)
}

// took says how long a body took.
func (p *packing) took(packed bool, size int, d time.Duration) {
	if !p.allowed || size < packLeast {
		return
	}
	i := 0
	if packed {
		i = 1
	}
	per := float64(d) / float64(size)
	if p.known[i] < packFirst {
		p.known[i]++
		p.per[i] += (per - p.per[i]) / float64(p.known[i])
		return
	}
	p.per[i] += (per - p.per[i]) / packShare
}

// Package model is the counter guest's arithmetic (tests/xtf/tests/counter) in Go: it says which checksum goes with a
// count.
//
// The one rule: the model knows only a guest's seed and number of pages. Its results never come from a guest.
package model

import "math/bits"

// words is how many there are in a page.
const words = 512

// A Counter is a guest's state at some count. Its zero value is of no use; see [New].
type Counter struct {
	Count uint64
	Sum   uint64

	written []uint64 // the count at which each page was
	digests []uint64 // of each page as it is now
}

// New returns the state of a guest that has not counted yet.
func New(seed uint64, pages int) *Counter {
	c := &Counter{Sum: mix(seed), written: make([]uint64, pages), digests: make([]uint64, pages)}
	for i := range c.digests {
		c.digests[i] = digest(uint64(i), 0)
	}
	return c
}

// To counts on. A model can't count back: it panics.
func (c *Counter) To(count uint64) {
	if count < c.Count {
		panic("model: counting back")
	}
	for c.Count < count {
		c.step()
	}
}

// Digest is of all pages.
func (c *Counter) Digest() uint64 {
	var d uint64
	for _, page := range c.digests {
		d = digestAdd(d, page)
	}
	return d
}

// step looks at two pages and writes the first one anew.
func (c *Counter) step() {
	r := mix(c.Sum + c.Count)
	n := uint64(len(c.digests))
	change, look := (r&0xffffffff)%n, (r>>32)%n
	c.Count++
	c.Sum = mix(mix(mix(c.Sum^c.Count)^c.digests[change]) ^ c.digests[look])
	c.written[change] = c.Count
	c.digests[change] = digest(change, c.Count)
}

// Word is what a page holds at 8 times i, in little-endian order.
func (c *Counter) Word(page int, i uint64) uint64 { return mix(key(uint64(page), c.written[page]) + i) }

func key(page, count uint64) uint64 { return mix(mix(page) ^ count) }

// digest is of a page that was last written at a count.
func digest(page, count uint64) uint64 {
	k := key(page, count)
	var d uint64
	for i := range uint64(words) {
		d = digestAdd(d, mix(k+i))
	}
	return d
}

func digestAdd(d, x uint64) uint64 { return (bits.RotateLeft64(d, 9) ^ x) * 0xff51afd7ed558ccd }

// mix is SplitMix64's step from one state to one output.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

package primary

import (
	"testing"
	"time"
)

// A packing compresses while that takes less time, and notices when the network changes.
func TestPacking(t *testing.T) {
	const size = 256 << 10
	// What a body takes: packed at 500 MB/s to half its size; the wire's rate is in bytes a
	// second.
	took := func(packed bool, rate float64) time.Duration {
		if packed {
			return time.Duration(size/500e6*1e9) + time.Duration(size/2/rate*1e9)
		}
		return time.Duration(size / rate * 1e9)
	}
	p := packing{allowed: true}
	share := func(rate float64) float64 {
		n := 0
		for range 1000 {
			packed := p.next(size)
			p.took(packed, size, took(packed, rate))
			if packed {
				n++
			}
		}
		return float64(n) / 1000
	}
	for i, c := range []struct {
		rate      float64
		low, high float64
	}{
		{125e6, 0.85, 1}, // 1 GbE: the network is what waits
		{2e9, 0, 0.15},   // faster than a processor compresses
		{125e6, 0.85, 1},
		{1.7e9, 0, 0.15},
	} {
		if got := share(c.rate); got < c.low || got > c.high {
			t.Errorf("turn %d, %.0f MB/s: %.3f of the bodies are compressed, want %v to %v", i, c.rate/1e6, got, c.low, c.high)
		}
	}
	off := packing{}
	for range 100 {
		if off.next(size) {
			t.Fatal("compressed though that is not allowed")
		}
		off.took(false, size, time.Millisecond)
	}
	if p.next(100) {
		t.Error("a small body is compressed")
	}
}

// An epoch that fits into the kernel's buffers is judged by its ack: over a slow link it is
// compressed, over a fast one not.
func TestPackingOfEpochs(t *testing.T) {
	const size = 48 << 10
	for _, c := range []struct {
		rate      float64
		low, high int
	}{{1.25e6, 150, 200}, {1.25e9, 0, 30}} {
		o := newOutput(true, 0)
		n := 0
		for e := uint64(2); e < 202; e++ {
			first, second := o.packs(e, size/2), o.packs(e, size/2)
			if first != second {
				t.Fatal("one epoch, and two ways")
			}
			took := 5*time.Millisecond + time.Duration(size/c.rate*1e9)
			if first {
				n++
				took = 5*time.Millisecond + time.Duration(size/500e6*1e9) + time.Duration(size/2/c.rate*1e9)
			}
			o.begun = time.Now().Add(-took)
			o.acked(e)
		}
		if n < c.low || n > c.high {
			t.Errorf("%.1f MB/s: %d of 200 epochs are compressed, want %d to %d", c.rate/1e6, n, c.low, c.high)
		}
	}
}

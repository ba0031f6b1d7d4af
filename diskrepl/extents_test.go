package diskrepl

import (
	"bytes"
	"slices"
	"testing"
)

// Extents stay disjoint, in order and right, whatever is put on top.
func TestExtents(t *testing.T) {
	r := newRand(t)
	for range 300 {
		var x extents
		var model [64]byte
		for i := range byte(30) {
			off := r.Int64N(60)
			e := extent{off: off, end: off + r.Int64N(64-off), typ: recWrite}
			e.mem = bytes.Repeat([]byte{i + 1}, int(e.end-e.off))
			copy(model[e.off:e.end], e.mem)
			x.put(e)
		}
		if !slices.IsSortedFunc(x, func(a, b extent) int { return int(a.off - b.off) }) {
			t.Fatalf("not in order: %v", x)
		}
		d := newMemory(64)
		if err := x.writeOut(d, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d.b, model[:]) {
			t.Fatalf("%v gives %v, want %v", x, d.b, model)
		}
		for i, e := range x {
			if e.end <= e.off || int64(len(e.mem)) != e.end-e.off || i > 0 && x[i-1].end > e.off {
				t.Fatalf("extent %d of %v", i, x)
			}
		}
	}
}

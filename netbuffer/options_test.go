package netbuffer

import (
	"math"
	"testing"
)

// TestCeiling: a queue drops at four times the limit, and not before 256 MiB; the
// number fits what the kernel takes.
func TestCeiling(t *testing.T) {
	for limit, want := range map[uint64]uint32{
		0: 256 << 20, 1: 256 << 20, 64 << 20: 256 << 20, 100 << 20: 400 << 20, 1 << 30: math.MaxUint32, math.MaxUint64: math.MaxUint32,
	} {
		if got := (Options{Limit: limit}).ceiling(); got != want {
			t.Errorf("limit %d: queues drop at %d, want %d", limit, got, want)
		}
	}
}

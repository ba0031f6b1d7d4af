package model_test

import (
	"fmt"
	"testing"

	"xlft/tests/xtf/model"
)

// The output of a guest on a Xen host: guest and model were written independently.
func TestGuestsWords(t *testing.T) {
	c := model.New(1, 512)
	for _, want := range []struct{ count, sum, digest uint64 }{
		{205, 0x6bfab519a53347ef, 0xd3714093240270f5},
		{1000, 0xd2f43edd39d2d2b0, 0},
		{2831, 0x55609d00e66b0c32, 0x993853e2a72e5818},
		{4158, 0xcc9343f91c7f1c2a, 0xdc82a673a27d96d5},
	} {
		c.To(want.count)
		if c.Sum != want.sum {
			t.Errorf("sum at %d is %016x, want %016x", c.Count, c.Sum, want.sum)
		}
		if got := c.Digest(); want.digest != 0 && got != want.digest {
			t.Errorf("digest at %d is %016x, want %016x", c.Count, got, want.digest)
		}
	}
}

// The published value of SplitMix64's first output from state 0.
func TestSeeds(t *testing.T) {
	if got, want := model.New(0, 1).Sum, uint64(0xe220a8397b1dcdaf); got != want {
		t.Errorf("first sum of seed 0 is %016x, want %016x", got, want)
	}
	if a, b := model.New(1, 64), model.New(2, 64); a.Sum == b.Sum {
		t.Error("two seeds give one sum")
	}
}

func TestNoWayBack(t *testing.T) {
	c := model.New(1, 4)
	c.To(10)
	defer func() {
		if got, want := fmt.Sprint(recover()), "model: counting back"; got != want {
			t.Errorf("panic %q, want %q", got, want)
		}
	}()
	c.To(9)
}

func BenchmarkStep(b *testing.B) {
	c := model.New(1, 512)
	c.To(uint64(b.N))
}

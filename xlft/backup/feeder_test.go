package backup

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"xlft/xlft/wire"
)

// However a peer cuts an epoch into pieces, the bytes come out as they went in, and
// the memory is at most twice the bytes and a buffer.
func TestEpochMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0))
	for name, size := range map[string]func() int{
		"tiny":        func() int { return 19 },
		"full":        func() int { return wire.DataBody },
		"just over":   func() int { return wire.DataBody/2 + 1 },
		"alternating": func() int { return []int{1, wire.DataBody/2 + 1}[rng.IntN(2)] },
		"any":         func() int { return rng.IntN(wire.DataBody + 1) },
	} {
		// A frame's body is in a buffer of its own size, or in one that is used again.
		for _, own := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, own %v", name, own), func(t *testing.T) {
				var e epoch
				var free wire.Buffers
				var want []byte
				body := make([]byte, 0, wire.DataBody)
				for range 60 {
					n := size()
					if own {
						body = make([]byte, n)
					}
					body = body[:n]
					for i := range body {
						body[i] = byte(len(want) + i)
					}
					want = append(want, body...)
					if e.add(body, &free) {
						body = make([]byte, 0, wire.DataBody)
					}
				}
				memory := 0
				for _, p := range e.pieces {
					memory += cap(p)
				}
				if got := bytes.Join(e.pieces, nil); !bytes.Equal(got, want) {
					t.Error("other bytes came out")
				}
				if memory > 2*len(want)+wire.DataBody {
					t.Errorf("%d bytes take %d", len(want), memory)
				}
				if n := len(e.pieces); n > 2*len(want)/wire.DataBody+1 {
					t.Errorf("%d bytes are in %d pieces", len(want), n)
				}
			})
		}
	}
}

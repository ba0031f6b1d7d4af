package backup

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

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

// slowly is a replica that takes its time for each checkpoint.
type slowly struct {
	Replica
	each time.Duration
}

func (slowly) Write(p []byte) (int, error) { return len(p), nil }

func (s slowly) Checkpoint() error {
	time.Sleep(s.each)
	return nil
}

// How long the restore takes over its last checkpoints is known; of the first one, which comes as
// it is sent, it is not said.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeeder(slowly{each: 30 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go f.run(ctx)
		if err := f.mark(1); err != nil {
			t.Fatal(err)
		}
		if fed, median := f.pace(); fed != 1 || median != 0 {
			t.Errorf("after the first: epoch %d, %v", fed, median)
		}
		for e := uint64(2); e < 2+3*paceOf; e++ {
			f.put(&epoch{number: e, pieces: [][]byte{make([]byte, 100)}})
			if err := f.await(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if fed, median := f.pace(); fed != 1+3*paceOf || median != 30*time.Millisecond || len(f.took) != paceOf {
			t.Errorf("epoch %d, %v, of %d", fed, median, len(f.took))
		}
	})
}

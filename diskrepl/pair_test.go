package diskrepl

import (
	"bytes"
	"context"
	"flag"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var seed = flag.Uint64("disk.seed", 0, "seed of the random histories; 0: a new one")

// newRand returns a generator whose seed is said if the test fails.
func newRand(t testing.TB) *rand.Rand {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("-disk.seed=%d", s)
		}
	})
	return rand.New(rand.NewPCG(s, 0))
}

// A pair is a mirror and its replica, joined.
type pair struct {
	t       testing.TB
	here    *memory
	there   *memory
	m       *Mirror
	link    *Link
	r       *Replica
	ended   chan error // of the replica's Run
	lost    chan error
	breaker net.Conn // the connection's end at the mirror
}

func newPair(t testing.TB, here, there *memory, limit int64) *pair {
	return newSpillingPair(t, here, there, limit, 0)
}

// newSpillingPair is a pair whose replica holds a part of the limit in a file.
func newSpillingPair(t testing.TB, here, there *memory, limit, file int64) *pair {
	a, b := net.Pipe()
	p := unjoined(t, here, there, there, a, b)
	p.spill(limit, file)
	p.join(a, limit)
	return p
}

// unjoined is a pair whose replica writes to dev, which may be there in another
// guise.
func unjoined(t testing.TB, here, there *memory, dev Device, a, b net.Conn) *pair {
	t.Cleanup(func() { a.Close(); b.Close() })
	p := &pair{t: t, here: here, there: there, m: NewMirror(here), r: NewReplica(dev, b),
		ended: make(chan error, 1), lost: make(chan error, 1), breaker: a}
	p.r.every = time.Hour // tests count flushes
	return p
}

// join begins the session over the mirror's end of the connection.
func (p *pair) join(a net.Conn, limit int64) {
	p.t.Helper()
	go func() { p.ended <- p.r.Run() }()
	var err error
	if p.link, err = p.m.Attach(a, Options{Limit: limit, Verify: true, Lost: func(err error) { p.lost <- err }}); err != nil {
		p.t.Fatal(err)
	}
}

// started waits for the first copy, and for its epoch.
func (p *pair) started() {
	p.t.Helper()
	if err := p.link.AwaitSync(); err != nil {
		p.t.Fatal(err)
	}
	p.seal(1)
	p.commit(1)
}

// spill has the replica hold a part of the limit in a file.
func (p *pair) spill(limit, file int64) {
	p.t.Helper()
	if file == 0 {
		return
	}
	f, err := os.Create(filepath.Join(p.t.TempDir(), "spill"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	p.r.SpillTo(f, file, limit-file)
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// seal ends an epoch at the mirror and waits until it is whole at the replica.
func (p *pair) seal(epoch uint64) {
	p.t.Helper()
	if err := p.link.Seal(epoch); err != nil {
		p.t.Fatal(err)
	}
	if err := p.r.AwaitSealed(within(p.t), epoch); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) commit(epoch uint64) {
	p.t.Helper()
	if err := p.r.Commit(epoch); err != nil {
		p.t.Fatal(err)
	}
	p.link.Release(epoch)
}

func (p *pair) same(what string, want []byte) {
	p.t.Helper()
	got := p.there.image()
	if bytes.Equal(got, want) {
		return
	}
	first, n := -1, 0
	for i := range got {
		if got[i] != want[i] {
			if n++; first < 0 {
				first = i
			}
		}
	}
	p.t.Errorf("%s: the backup's disk differs in %d bytes, the first at %d: %#x, want %#x", what, n, first, got[first], want[first])
}

// scribble changes the disk at random, as several users at once do, until stop,
// each so many times at most.
func scribble(m *Mirror, r *rand.Rand, most int, stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for range 4 {
		own := rand.New(rand.NewPCG(r.Uint64(), 1))
		wg.Go(func() {
			for range most {
				select {
				case <-stop:
					return
				default:
				}
				change(m, own)
			}
		})
	}
	return &wg
}

func change(m *Mirror, r *rand.Rand) {
	n := 1 + r.Int64N(3*ChunkSize/2)
	off := r.Int64N(m.Size() - n)
	switch r.IntN(10) {
	case 0:
		m.Zero(off, n, r.IntN(2) == 0, false)
	case 1:
		m.Trim(off, n, false)
	case 2:
		m.Flush()
	default:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		m.WriteAt(p, off, r.IntN(4) == 0)
	}
}

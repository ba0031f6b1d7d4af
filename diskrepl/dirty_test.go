package diskrepl

import (
	"bytes"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// rejoin begins another session of a mirror with what is left of a replica's
// disk, as mark says.
func (p *pair) rejoin(m *Mirror, session string, mark Mark) {
	p.t.Helper()
	a, b := net.Pipe()
	p.m, p.r, p.breaker = m, NewReplica(p.there, b), a
	p.ended, p.lost = make(chan error, 1), make(chan error, 1)
	go func(r *Replica, ended chan error) { ended <- r.Run() }(p.r, p.ended)
	lost := p.lost
	var err error
	if p.link, err = m.Attach(a, Options{Session: session, Mark: mark, Limit: 4 << 20, Lost: func(err error) { lost <- err }}); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { a.Close(); b.Close() })
	if err := p.link.AwaitSync(); err != nil {
		p.t.Fatal(err)
	}
}

// A session that ends at any moment leaves a copy that the next one brings up
// by what is known to have changed, also if the process that knew was killed;
// it ends with both the same.
func TestResync(t *testing.T) {
	r := newRand(t)
	known := 0
	for range 40 {
		here, there := newMemory(2<<20+777), newMemory(2<<20+777)
		for i := range here.b {
			here.b[i] = byte(r.Uint32())
		}
		here.slow = 200 * time.Microsecond
		mem := make([]byte, DirtySize(here.Size()))
		m := NewMirror(here)
		m.Track(mem)
		p := &pair{t: t, here: here, there: there}
		p.rejoin(m, "one", Mark{})
		for round := range 3 {
			session := []string{"one", "two", "three"}[round]
			some := func() {
				for range r.IntN(4) {
					change(m, r)
				}
			}
			some()
			p.seal(1)
			p.commit(1)
			for e := uint64(2); e < 2+r.Uint64N(6); e++ {
				// Writes are under way while the epoch ends.
				var wg sync.WaitGroup
				var begun sync.Once
				going := make(chan struct{})
				for range 3 {
					own := rand.New(rand.NewPCG(r.Uint64(), 1))
					wg.Go(func() {
						for range 4 {
							change(m, own)
							begun.Do(func() { close(going) })
						}
					})
				}
				<-going
				p.seal(e)
				how := r.IntN(5)
				switch how {
				case 0: // whole, not acked
				case 1: // acked, and not committed in time
					p.link.Release(e)
				default:
					p.commit(e)
				}
				wg.Wait()
				if how < 2 {
					break
				}
			}
			some()
			p.r.Close()
			<-p.ended
			p.link.Detach()
			epoch, ok := p.r.Committed()
			if !ok {
				t.Fatal("the copy is of no moment")
			}
			some()
			if r.IntN(2) == 0 { // killed
				m = NewMirror(here)
				m.Track(mem)
				some()
			}
			p.rejoin(m, session+"+", Mark{session, epoch})
			if !p.link.Progress().Known {
				t.Fatalf("what changed since epoch %d of %s is not known", epoch, session)
			}
			known++
			some()
			p.seal(1)
			want := here.image()
			p.commit(1)
			p.same("brought up", want)
			p.r.Close()
			<-p.ended
			p.link.Detach()
			p.rejoin(m, []string{"two", "three", "-"}[round], Mark{session + "+", 1})
		}
	}
	t.Logf("%d times", known)
}

// A copy that is of another session, or too old, is compared as a whole.
func TestResyncNeedsItsMark(t *testing.T) {
	here, there := newMemory(1<<20), newMemory(1<<20)
	m := NewMirror(here)
	p := &pair{t: t, here: here, there: there}
	p.rejoin(m, "one", Mark{})
	for e := uint64(1); e < 6; e++ {
		m.WriteAt([]byte{byte(e)}, int64(e)*ChunkSize, false)
		p.seal(e)
		p.commit(e)
	}
	p.r.Close()
	p.link.Detach()
	for _, c := range []struct {
		mark Mark
		want bool
	}{
		{Mark{}, false}, {Mark{"one", 3}, false}, {Mark{"one", 4}, true}, {Mark{"one", 5}, true}, {Mark{"one", 6}, false}, {Mark{"two", 5}, false},
	} {
		bitmap, ok := m.dirty.since(c.mark)
		if ok != c.want {
			t.Errorf("%+v: known %v, want %v", c.mark, ok, c.want)
		}
		if ok && count(bitmap) != int64(5-c.mark.Epoch) {
			t.Errorf("%+v: %d chunks", c.mark, count(bitmap))
		}
	}
	// What is in the memory of another disk's log, or of none, says nothing.
	if _, ok := newDirtyLog(bytes.Clone(m.dirty.mem), 1<<20).since(Mark{"one", 5}); !ok {
		t.Error("a log that was left is not gone on with")
	}
	for i := range 16 {
		bad := bytes.Clone(m.dirty.mem)
		bad[i]++
		if _, ok := newDirtyLog(bad, 1<<20).since(Mark{"one", 5}); ok {
			t.Errorf("a log whose byte %d is another is trusted", i)
		}
	}
}

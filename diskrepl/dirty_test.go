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
// disk, which is consistent as of point.
func (p *pair) rejoin(m *Mirror, session string, point SyncPoint) {
	p.t.Helper()
	a, b := net.Pipe()
	p.m, p.r, p.breaker = m, NewReplica(p.there, b), a
	p.ended, p.lost = make(chan error, 1), make(chan error, 1)
	go func(r *Replica, ended chan error) { ended <- r.Run() }(p.r, p.ended)
	lost := p.lost
	var err error
	if p.link, err = m.Attach(a, Options{Session: session, SyncPoint: point, Limit: 4 << 20, Lost: func(err error) { lost <- err }}); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { a.Close(); b.Close() })
	if err := p.link.AwaitSync(); err != nil {
		p.t.Fatal(err)
	}
}

// A session that ends at any time leaves a copy that the next session brings up
// to date by sending the known changes, also if the process that recorded them
// was killed. Both disks are the same in the end.
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
		p.rejoin(m, "one", SyncPoint{})
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
				t.Fatal("the copy is inconsistent")
			}
			some()
			if r.IntN(2) == 0 { // killed
				m = NewMirror(here)
				m.Track(mem)
				some()
			}
			p.rejoin(m, session+"+", SyncPoint{session, epoch})
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
			p.rejoin(m, []string{"two", "three", "-"}[round], SyncPoint{session + "+", 1})
		}
	}
	t.Logf("%d times", known)
}

// The changes since a sync point of another session, or since one that is too
// old, are not known.
func TestResyncNeedsItsSyncPoint(t *testing.T) {
	here, there := newMemory(1<<20), newMemory(1<<20)
	m := NewMirror(here)
	p := &pair{t: t, here: here, there: there}
	p.rejoin(m, "one", SyncPoint{})
	for e := uint64(1); e < 6; e++ {
		m.WriteAt([]byte{byte(e)}, int64(e)*ChunkSize, false)
		p.seal(e)
		p.commit(e)
	}
	p.r.Close()
	p.link.Detach()
	for _, c := range []struct {
		point SyncPoint
		want  bool
	}{
		{SyncPoint{}, false}, {SyncPoint{"one", 3}, false}, {SyncPoint{"one", 4}, true}, {SyncPoint{"one", 5}, true}, {SyncPoint{"one", 6}, false}, {SyncPoint{"two", 5}, false},
	} {
		bitmap, ok := m.dirty.since(c.point)
		if ok != c.want {
			t.Errorf("%+v: known %v, want %v", c.point, ok, c.want)
		}
		if ok && count(bitmap) != int64(5-c.point.Epoch) {
			t.Errorf("%+v: %d chunks", c.point, count(bitmap))
		}
	}
	// The log is found again in its memory; a damaged header is not trusted.
	if _, ok := newDirtyLog(bytes.Clone(m.dirty.mem), 1<<20).since(SyncPoint{"one", 5}); !ok {
		t.Error("a log that was left is not continued")
	}
	for i := range 16 {
		bad := bytes.Clone(m.dirty.mem)
		bad[i]++
		if _, ok := newDirtyLog(bad, 1<<20).since(SyncPoint{"one", 5}); ok {
			t.Errorf("a log whose byte %d differs is trusted", i)
		}
	}
}

// watched is a disk that says when it is written to.
type watched struct {
	*memory
	writes func(off int64)
}

func (d watched) WriteAt(p []byte, off int64, fua bool) error {
	d.writes(off)
	return d.memory.WriteAt(p, off, fua)
}

// A process may be killed in the middle of a write: what the disk may have by then is
// in the log already.
func TestMarkedBeforeItChanges(t *testing.T) {
	disk := newMemory(1 << 20)
	var m *Mirror
	seen := 0
	m = NewMirror(watched{disk, func(off int64) {
		seen++
		if c := off / ChunkSize; m.dirty.bitmap(m.dirty.open)[c>>3]&(1<<(c&7)) == 0 {
			t.Errorf("chunk %d is written and not marked", c)
		}
	}})
	m.Track(make([]byte, DirtySize(1<<20)))
	m.dirty.start("session", 1)
	for off := int64(0); off < 1<<20; off += 3 * ChunkSize {
		if err := m.WriteAt([]byte("x"), off, false); err != nil {
			t.Fatal(err)
		}
	}
	if seen == 0 {
		t.Error("nothing was written")
	}
}

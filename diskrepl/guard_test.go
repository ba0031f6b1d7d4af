package diskrepl

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type span struct{ off, end int64 }

// A pageCache is a disk behind a page cache that does what the kernel's does: pages
// that could not be written back are clean, and the error is reported once.
type pageCache struct {
	*memory // what the cache returns

	mu      sync.Mutex
	storage []byte
	dirty   []span
	weak    bool // nothing can be written back
	unread  int64
	unseen  bool   // an error is to be reported
	stuck   []span // what is written there is lost until the page cache forgets it
	lies    int    // so many writes are lost without an error
}

var errMedium = errors.New("medium error")

func newPageCache(n int) *pageCache {
	return &pageCache{memory: newMemory(n), storage: make([]byte, n), unread: -1}
}

func (c *pageCache) WriteAt(p []byte, off int64, fua bool) error {
	if err := c.memory.WriteAt(p, off, fua); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = append(c.dirty, span{off, off + int64(len(p))})
	if off <= c.unread && c.unread < off+int64(len(p)) {
		c.unread = -1 // a drive takes another sector for it
	}
	return nil
}

func (c *pageCache) Zero(off, n int64, _, fua bool) error {
	return c.WriteAt(make([]byte, n), off, fua)
}

// writeBack is what the kernel does by itself. It is called with mu held.
func (c *pageCache) writeBack() {
	for _, s := range c.dirty {
		if c.weak {
			c.unseen = true
			c.stuck = append(c.stuck, s)
			continue
		}
		if c.lies > 0 {
			c.lies--
			continue
		}
		if slices.ContainsFunc(c.stuck, func(o span) bool { return s.off < o.end && o.off < s.end }) {
			continue
		}
		c.memory.mu.Lock()
		copy(c.storage[s.off:s.end], c.b[s.off:])
		c.memory.mu.Unlock()
	}
	c.dirty = nil
}

func (c *pageCache) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBack()
	if c.unseen {
		c.unseen = false
		return errMedium
	}
	return nil
}

func (c *pageCache) ReadStable(p []byte, off int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBack()
	if off <= c.unread && c.unread < off+int64(len(p)) {
		return errMedium
	}
	copy(p, c.storage[off:])
	return nil
}

func (c *pageCache) Forget(off, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory.mu.Lock()
	defer c.memory.mu.Unlock()
	if len(c.dirty) == 0 {
		copy(c.b[off:off+n], c.storage[off:])
		c.stuck = nil
	}
	return nil
}

func (c *pageCache) setWeak(weak bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.weak = weak
}

// cachedPair begins a session of m with a copy behind a page cache.
func cachedPair(t *testing.T, m *Mirror, there *pageCache, every time.Duration, prepare func(*Replica)) *pair {
	t.Helper()
	return devicePair(t, m, there.memory, there, every, prepare)
}

// devicePair is cachedPair with a disk of another kind before the memory.
func devicePair(t *testing.T, m *Mirror, copied *memory, there Device, every time.Duration, prepare func(*Replica)) *pair {
	t.Helper()
	a, b := net.Pipe()
	p := unjoined(t, nil, copied, there, a, b)
	p.m, p.r.every = m, every
	prepare(p.r)
	p.join(a, 1<<20)
	return p
}

func asIs(*Replica) {}

// The storage of the copy takes nothing any more. The guest does not flush, and
// the primary hears of it all the same. The page cache has what the storage has
// not: neither that session nor a later one takes it for the copy.
func TestWriteBackFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := newMemory(1<<20), newPageCache(1<<20)
		m := NewMirror(here)
		p := cachedPair(t, m, there, time.Second, asIs)
		p.started()
		there.setWeak(true)
		begun := time.Now()
		m.WriteAt(bytes.Repeat([]byte("data"), 64<<10), 0, false)
		p.seal(2)
		p.commit(2)
		if err := <-p.lost; !strings.Contains(err.Error(), "medium error") {
			t.Errorf("the primary is told: %v", err)
		}
		if late := time.Since(begun); late > 2*time.Second {
			t.Errorf("it took %v", late)
		}
		<-p.ended
		if epoch, ok := p.r.Committed(); ok || !errors.Is(p.r.Failed(), errMedium) {
			t.Errorf("committed %d, %v; failed: %v", epoch, ok, p.r.Failed())
		}
		// The kernel has said it once. Whoever asks the copy again hears it again.
		if err := p.r.Flush(); !errors.Is(err, errMedium) {
			t.Errorf("a second flush: %v", err)
		}
		if err := p.r.Finish(2); !errors.Is(err, errMedium) {
			t.Errorf("takeover: %v", err)
		}
		there.setWeak(false)

		// A receiver that did not get to record it compares with the storage.
		p = cachedPair(t, m, there, time.Second, asIs)
		if err := p.link.AwaitSync(); err != nil || p.link.Progress().Sent == 0 {
			t.Errorf("the next session took the page cache for the copy: %v", err)
		}
		p.link.Detach()
		<-p.ended
		p = cachedPair(t, m, there, time.Second, (*Replica).CopyAll)
		p.started()
		if err := p.r.Finish(1); err != nil || !bytes.Equal(there.storage, here.image()) {
			t.Errorf("the storage is not the primary's disk: %v", err)
		}
		<-p.ended
	})
}

// A copy that failed is written as a whole, though it reads as it should.
func TestCopyAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := newPageCache(1 << 20)
		p := cachedPair(t, NewMirror(newMemory(1<<20)), there, time.Second, (*Replica).CopyAll)
		p.started()
		if pr := p.link.Progress(); pr.Sent != pr.Total {
			t.Errorf("%+v", pr)
		}
		p.link.Detach()
		<-p.ended
	})
}

// A storage that failed says that it has what it has not: a first copy notices,
// and writes it once more. If that does not help it fails.
func TestFirstCopyIsVerified(t *testing.T) {
	for _, c := range []struct {
		lies int
		ok   bool
	}{{1, true}, {20, false}} {
		synctest.Test(t, func(t *testing.T) {
			here, there := newMemory(1<<20), newPageCache(1<<20)
			m := NewMirror(here)
			m.WriteAt(bytes.Repeat([]byte("data"), 100<<10), 5000, false)
			there.lies = c.lies
			p := cachedPair(t, m, there, time.Hour, (*Replica).CopyAll)
			err := p.link.AwaitSync()
			if err == nil {
				if err = p.link.Seal(1); err == nil {
					err = p.r.AwaitSealed(t.Context(), 1)
				}
			}
			if c.ok && (err != nil || !bytes.Equal(there.storage, here.image())) || !c.ok && (err == nil || p.r.Failed() == nil) {
				t.Errorf("%d writes lost: %v, failed %v", c.lies, err, p.r.Failed())
			}
			p.link.Detach()
			<-p.ended
		})
	}
}

// An earlier process left pages that can't be written back: the first copy does
// not begin.
func TestLeftPagesFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := newPageCache(1 << 20)
		there.WriteAt([]byte("left"), 0, false)
		there.setWeak(true)
		p := cachedPair(t, NewMirror(newMemory(1<<20)), there, time.Hour, asIs)
		if err := p.link.AwaitSync(); err == nil || !strings.Contains(err.Error(), "medium error") {
			t.Errorf("in sync: %v", err)
		}
		<-p.ended
	})
}

// The copy's disk is lost while the domain writes nothing: it is found out within
// seconds. A disk that can be read is left alone.
func TestIdleDiskIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := &losable{pageCache: newPageCache(8 << 20)}
		p := devicePair(t, NewMirror(newMemory(8<<20)), there.memory, there, time.Second, asIs)
		p.started()
		time.Sleep(time.Minute)
		if err := p.r.Failed(); err != nil {
			t.Fatal(err)
		}
		there.lost.Store(true)
		begun := time.Now()
		if err := <-p.lost; !strings.Contains(err.Error(), "medium error") {
			t.Errorf("the primary is told: %v", err)
		}
		if late := time.Since(begun); late > 2*time.Second {
			t.Errorf("it took %v", late)
		}
		<-p.ended
	})
}

// A losable disk can't be read once it is lost.
type losable struct {
	*pageCache
	lost atomic.Bool
}

func (d *losable) ReadStable(p []byte, off int64) error {
	if d.lost.Load() {
		return errMedium
	}
	return d.pageCache.ReadStable(p, off)
}

// The looks at an idle disk reach all of it.
func TestPatrolVisitsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := &visits{newMemory(1 << 20), map[int64]bool{}}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			if err := newGuard(seen).patrol(stop, time.Second); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		close(stop)
		<-done
		if len(seen.at) != 1<<20/ChunkSize {
			t.Errorf("%d chunks of %d were read", len(seen.at), 1<<20/ChunkSize)
		}
	})
}

type visits struct {
	*memory
	at map[int64]bool
}

func (v *visits) ReadStable(p []byte, off int64) error {
	v.at[off/ChunkSize] = true
	return v.memory.ReadAt(p, off)
}

func (v *visits) Forget(int64, int64) error { return nil }

// One sector of the copy can't be read: its chunk is written, and the disks are
// in sync.
func TestUnreadableChunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := newPageCache(1 << 20)
		there.unread = 3*ChunkSize + 512
		p := cachedPair(t, NewMirror(newMemory(1<<20)), there, time.Second, asIs)
		p.started()
		if pr := p.link.Progress(); pr.Sent != ChunkSize {
			t.Errorf("%+v", pr)
		}
		p.link.Detach()
		<-p.ended
	})
}

// tellsOne is a disk that tells one of two flushes at once that it failed.
type tellsOne struct {
	*memory
	let  chan struct{}
	told bool
	in   int
}

func (d *tellsOne) Flush() error {
	d.in++
	tell := !d.told
	d.told = true
	<-d.let
	if tell {
		return errMedium
	}
	return nil
}

// A failure that comes to one of two flushes is the other's as well: else the
// journal would go though the disk lacks the epoch.
func TestFlushesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &tellsOne{newMemory(1 << 20), make(chan struct{}), false, 0}
		g := newGuard(d)
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- g.Flush() }()
			synctest.Wait()
		}
		if d.in != 1 {
			t.Errorf("%d flushes at once", d.in)
		}
		close(d.let)
		for range 2 {
			if err := <-errs; !errors.Is(err, errMedium) {
				t.Errorf("a flush: %v", err)
			}
		}
	})
}

// A journal repairs a disk whose write-back failed, also while the page cache still
// has the pages that can't be written: the storage has the epoch after a replay.
func TestReplayToFailedStorage(t *testing.T) {
	here, there, dir := newMemory(1<<20), newPageCache(1<<20), EpochDir(t.TempDir()+"/journal")
	m := NewMirror(here)
	p := cachedPair(t, m, there, time.Hour, func(r *Replica) { r.Durable(dir) })
	p.started()
	want := bytes.Repeat([]byte("data"), 1<<10)
	m.WriteAt(want, 5000, false)
	there.setWeak(true)
	p.seal(2)
	if err := p.r.Commit(2); err == nil {
		t.Fatal("committed though nothing can be written back")
	}
	p.r.Close()
	there.setWeak(false)
	if err := Replay(there, dir, 2); err != nil {
		t.Fatal(err)
	}
	if got := there.storage[5000 : 5000+len(want)]; !bytes.Equal(got, want) {
		t.Errorf("the storage has %.16q after the replay", got)
	}
	clear(there.storage)
	there.lies = 1
	if err := Replay(there, dir, 2); err != nil || !bytes.Equal(there.storage[5000:5000+len(want)], want) {
		t.Errorf("a replay whose first write is lost: %v, %.16q", err, there.storage[5000:5000+len(want)])
	}
	// And what is written later is not lost among pages that failed.
	there.WriteAt([]byte("later"), 5001, false)
	if there.Flush(); string(there.storage[5001:5006]) != "later" {
		t.Errorf("the storage has %q of a later write", there.storage[5001:5006])
	}
}

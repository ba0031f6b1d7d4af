package diskrepl

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The first copy goes on while the disk is written to, from a backup's disk
// that has other data, and ends with both the same. Then epochs follow; a
// takeover at any moment leaves the newest committed one, to the byte.
func TestHistories(t *testing.T) {
	r := newRand(t)
	for round := range 30 {
		here, there := newMemory(1<<20+12345), newMemory(1<<20+12345)
		for i := range here.b {
			here.b[i] = byte(r.Uint32())
		}
		copy(there.b, here.b)
		for range r.IntN(8) { // chunks that differ
			there.b[r.IntN(len(there.b))]++
		}
		// Every other time most of what is held back is in a file.
		p := newSpillingPair(t, here, there, 4<<20, int64(round%2)*(4<<20-100<<10))
		stop := make(chan struct{})
		wg := scribble(p.m, r, math.MaxInt, stop)
		if err := p.link.AwaitSync(); err != nil {
			t.Fatal(err)
		}
		epochs, last, done := 1+r.IntN(6), []byte(nil), uint64(0)
		for e := uint64(1); e <= uint64(epochs); e++ {
			// The domain stands still while it is sealed, and its disk is
			// looked at.
			close(stop)
			wg.Wait()
			want := here.image()
			p.seal(e)
			// No more than an epoch has room for: they are waited for before
			// its seal.
			stop = make(chan struct{})
			wg = scribble(p.m, r, 10, stop)
			if e == uint64(epochs) && e > 1 && r.IntN(2) == 0 {
				break // sealed, whole, and never committed
			}
			p.commit(e)
			last, done = want, e
			if r.IntN(3) == 0 {
				p.same(fmt.Sprintf("round %d, after the commit of epoch %d", round, e), want)
			}
		}
		if err := p.r.Finish(done); err != nil {
			t.Fatal(err)
		}
		p.same(fmt.Sprintf("round %d, taken over at epoch %d", round, done), last)
		close(stop)
		wg.Wait() // the primary's writers are not held up by a backup that went
		if there.syncs == 0 {
			t.Error("the disk was taken over without a flush")
		}
	}
}

// A first copy sends what differs and no more.
func TestSyncSendsDifferences(t *testing.T) {
	here, there := newMemory(40*ChunkSize+100), newMemory(40*ChunkSize+100)
	for i := range here.b {
		here.b[i] = byte(i * 7)
	}
	copy(there.b, here.b)
	there.b[5*ChunkSize]++
	there.b[len(there.b)-1]++
	p := newPair(t, here, there, 1<<20)
	p.started()
	want := Progress{Total: here.Size(), Compared: here.Size(), Sent: ChunkSize + 100, Synced: true}
	if got := p.link.Progress(); got != want {
		t.Errorf("progress %+v, want %+v", got, want)
	}
	if there.writes != 2 {
		t.Errorf("%d writes at the backup, want 2", there.writes)
	}
	p.same("after the first copy", here.image())
}

// A first copy keeps to its rate, and ends at once when it is told to.
func TestSyncRate(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	m := NewMirror(newMemory(10 * ChunkSize))
	begun := time.Now()
	l, err := m.Attach(a, Options{Limit: 1 << 20, Rate: 20 * ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	r := NewReplica(newMemory(10*ChunkSize), b)
	go r.Run()
	if err := l.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 450*time.Millisecond {
		t.Errorf("10 chunks at 20 a second took %v", took)
	}
	l.Detach()

	c, d := net.Pipe()
	defer d.Close()
	if l, err = m.Attach(c, Options{Limit: 1 << 20, Rate: 1}); err != nil {
		t.Fatal(err)
	}
	go NewReplica(newMemory(10*ChunkSize), d).Run()
	l.Detach() // or the test runs out of time
}

// The first copy is no write that the backup holds back: it does not count against
// the limit, however large the disk is.
func TestFirstCopyIsNotHeld(t *testing.T) {
	here := newMemory(1 << 20)
	for i := range here.b {
		here.b[i] = byte(i>>8) | 1
	}
	p := newPair(t, here, newMemory(1<<20), 64<<10)
	if err := p.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	if held, limit := p.link.Unacked(); held != 0 || limit != 64<<10 {
		t.Errorf("%d of %d bytes are held", held, limit)
	}
}

// A backup that can't hold more makes writers wait; a commit lets them go on, and
// so does the end of the link.
func TestLimit(t *testing.T) {
	for _, end := range []string{"commit", "detach"} {
		t.Run(end, func(t *testing.T) {
			p := newPair(t, newMemory(1<<20), newMemory(1<<20), 64<<10)
			p.started()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range 4 {
					p.m.WriteAt(make([]byte, 30<<10), int64(i)*30<<10, false)
				}
			}()
			for {
				if held, _ := p.link.Unacked(); held > 60<<10 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			select {
			case <-done:
				t.Fatal("four writes of 30 KiB went through a limit of 64 KiB")
			case <-time.After(20 * time.Millisecond):
			}
			if end == "detach" {
				p.link.Detach()
			} else {
				p.seal(2)
				p.commit(2)
			}
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("the writer still waits")
			}
		})
	}
}

// A backup whose disk is slower than the network: what is acknowledged and not
// yet committed counts, and the domain's writes wait. The journal, all of it in a
// file, is never too small.
func TestLimitWhileCommitting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 256 << 10
		there := newMemory(1 << 20)
		slow := stuck{there, make(chan struct{})}
		a, b := net.Pipe()
		p := unjoined(t, newMemory(1<<20), there, slow, a, b)
		p.spill(limit, limit)
		p.join(a, limit)
		p.started()
		var wrote atomic.Int64
		stop := make(chan struct{})
		var writers sync.WaitGroup
		writers.Go(func() {
			for i := int64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
					p.m.WriteAt(bytes.Repeat([]byte{byte(i)}, 32<<10), i%32<<15, false)
					wrote.Add(32 << 10)
				}
			}
		})
		var commits sync.WaitGroup
		for e := uint64(2); e < 6; e++ {
			synctest.Wait()
			if n := wrote.Load(); n > limit {
				t.Errorf("epoch %d: %d bytes were taken, and none is on the backup's disk", e, n)
			}
			if err := p.link.Seal(e); err != nil {
				t.Fatal(err)
			}
			if e > 3 {
				break // the commit of 3 has not begun
			}
			if err := p.r.AwaitSealed(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			p.link.Release(e)
			commits.Go(func() { p.r.Commit(e) })
		}
		close(slow.let)
		commits.Wait()
		synctest.Wait()
		if n := wrote.Load(); n <= limit {
			t.Errorf("%d bytes were taken, and two epochs are committed", n)
		}
		close(stop)
		p.link.Detach()
		if err := <-p.ended; !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		writers.Wait()
	})
}

// A backup's disk that counts how its ranges are made zero.
type zeroing struct {
	*memory
	zeroed atomic.Int64
}

func (z *zeroing) Zero(off, n int64, keep, fua bool) error {
	z.zeroed.Add(n)
	return z.memory.Zero(off, n, keep, fua)
}

// A chunk of zeroes of the primary's disk, where the backup's has something else,
// is made a hole there, and not written.
func TestHolesStay(t *testing.T) {
	here, there := newMemory(1<<20-512), &zeroing{memory: newMemory(1<<20 - 512)}
	here.WriteAt([]byte("data"), 3*ChunkSize, false)
	there.WriteAt(bytes.Repeat([]byte{1}, 1<<20-512), 0, false)
	there.writes = 0
	a, b := net.Pipe()
	p := unjoined(t, here, there.memory, there, a, b)
	p.join(a, 1<<20)
	p.started()
	p.same("copied", here.image())
	if got, want := there.zeroed.Load(), int64(1<<20-512-ChunkSize); got != want {
		t.Errorf("%d bytes were made holes, want %d", got, want)
	}
	p.link.Detach()
	<-p.ended
}

// A flush with nothing written since the last one is no barrier, and after a write
// with FUA alone there is nothing to flush. With a journal no flush is a barrier, and
// no write is forced to the storage: a commit ends with one flush.
func TestFlushesAreNotRepeated(t *testing.T) {
	for _, journal := range []bool{false, true} {
		here, there := newMemory(1<<20), newMemory(1<<20)
		var p *pair
		if journal {
			p = durablePair(t, here, there, EpochDir(filepath.Join(t.TempDir(), "journal")))
			p.there = there
			p.seal(1)
			p.commit(1)
		} else {
			p = newPair(t, here, there, 1<<20)
			p.started()
		}
		there.awaitFlush()
		was, fua := there.syncs, there.fua
		for range 5 {
			p.m.Flush()
		}
		for i := range 3 {
			p.m.WriteAt([]byte{1}, int64(i), true)
			p.m.Flush()
			p.m.Flush()
		}
		p.seal(2)
		if got, want := p.r.Status().Journal, int64(7*heldSize+3); got != want {
			t.Errorf("journal %v: %d bytes are held, want %d: of the first flush of five, and of three writes with one each", journal, got, want)
		}
		p.commit(2)
		want := [2]int{1, 3}
		if journal {
			want = [2]int{1, 0}
		}
		if got := [2]int{there.syncs - was, there.fua - fua}; got != want {
			t.Errorf("journal %v: %v flushes and writes with FUA, want %v", journal, got, want)
		}
		p.link.Detach()
		<-p.ended
	}
}

// Small writes go to the backup together, and no later than their epoch's end.
func TestSmallWritesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		conn := &counted{Conn: a}
		there := newMemory(1 << 20)
		p := unjoined(t, newMemory(1<<20), there, there, a, b)
		p.join(conn, 1<<20)
		p.started()
		before := conn.writes.Load()
		const rounds = 40
		for i := range rounds {
			p.m.WriteAt([]byte{1}, int64(i), false)
			p.m.Flush()
			time.Sleep(time.Millisecond)
		}
		if n := conn.writes.Load() - before; n != 0 {
			t.Errorf("%d sends for %d small writes within %v", n, rounds, gatherTime)
		}
		time.Sleep(gatherTime)
		if n := conn.writes.Load() - before; n != 1 {
			t.Errorf("%d sends for %d small writes after %v", n, rounds, gatherTime)
		}
		p.m.WriteAt([]byte{2}, 0, false)
		begun := time.Now()
		p.seal(2) // waits for the backup to have it
		if d := time.Since(begun); d != 0 {
			t.Errorf("the end of an epoch took %v to be sent", d)
		}
		p.commit(2)
		p.same("committed", p.here.image())
		p.link.Detach()
		<-p.ended
	})
}

// counted counts what is sent.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// The primary's own disk fails: the writer hears of it, the backup does not get
// what the primary has not.
func TestPrimaryDiskFails(t *testing.T) {
	p := newPair(t, newMemory(1<<20), newMemory(1<<20), 1<<20)
	p.started()
	p.here.setFail(errors.New("medium error"))
	if err := p.m.WriteAt([]byte("x"), 0, false); err == nil {
		t.Error("a failed write was answered")
	}
	p.seal(2)
	p.commit(2)
	p.same("after a failed write", p.here.image())
}

// A connection that breaks leaves the primary's disk as it is, without a link.
func TestLinkBreaks(t *testing.T) {
	p := newPair(t, newMemory(1<<20), newMemory(1<<20), 1<<20)
	if err := p.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	p.breaker.Close()
	if err := <-p.lost; err == nil {
		t.Error("no reason")
	}
	if err := p.link.Seal(1); err == nil {
		t.Error("sealed without a link")
	}
	a, b := net.Pipe()
	defer b.Close()
	l, err := p.m.Attach(a, Options{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.m.Attach(a, Options{Limit: 1 << 20}); err == nil {
		t.Error("two links at once")
	}
	l.Detach()
}

// No epoch ends before the backup has a copy that it could belong to.
func TestNoSealBeforeTheCopy(t *testing.T) {
	here, there := newMemory(1<<20), newMemory(1<<20)
	a, b := net.Pipe()
	p := unjoined(t, here, there, there, a, b) // nobody answers
	link, err := p.m.Attach(a, Options{Limit: 1 << 20, Lost: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer link.Detach()
	if err := link.Seal(1); err == nil {
		t.Error("an epoch was sealed while the disks differ")
	}
}

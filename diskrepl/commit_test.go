package diskrepl

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"xlft/diskrepl/blockfile"
)

// The writes of an epoch that no barrier keeps apart go to the disk together, and
// adjacent ones as one.
func TestCommitsAreDeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := newMemory(1<<20), newMemory(1<<20)
		p := newPair(t, here, there, 1<<20)
		p.started()
		there.slow = time.Millisecond
		const n = 4 * writersOut
		for i := range n {
			p.m.WriteAt([]byte{1}, int64(i*8<<10), false)
		}
		for i := range n {
			p.m.WriteAt([]byte{2}, int64(1<<20-n+i), false)
		}
		p.seal(2)
		begun, was := time.Now(), there.writes
		p.commit(2)
		if d := time.Since(begun); d > 5*time.Millisecond {
			t.Errorf("%d writes, and %d adjacent ones, of a millisecond each took %v", n, n, d)
		}
		if got := there.writes - was; got != n+1 {
			t.Errorf("%d writes, want %d and one", got, n)
		}
		p.same("committed", here.image())
		p.link.Detach()
		<-p.ended
	})
}

const (
	blockOf = 512 // bytes of a block of a cachedDisk
	blocks  = 64
)

// A cachedDisk is a disk that keeps what it is given in its cache until it is
// flushed. It knows the log that is written to it, by the numbers in its blocks.
type cachedDisk struct {
	t   *testing.T
	log []logged

	mu      sync.Mutex
	cache   [blocks]int // number of the record that each block is of, counted from 1
	stable  [blocks]int
	busy    [blocks]bool // a change is under way
	fails   int          // so many changes from now the disk fails; 0: it does not
	flushes int
	forced  int // writes with FUA
}

func (d *cachedDisk) Size() int64                      { return blockOf * blocks }
func (d *cachedDisk) ReadAt(p []byte, _ int64) error   { return errors.New("not read") }
func (d *cachedDisk) Zero(_, _ int64, _, _ bool) error { return errors.New("not zeroed") }
func (d *cachedDisk) Trim(_, _ int64, _ bool) error    { return errors.New("not trimmed") }

// ordered checks that the storage has all that a record may depend on: what comes
// before the newest flush before it, and the writes with FUA before it.
func (d *cachedDisk) ordered(number int) {
	need := [blocks]int{}
	flushed := false
	for i := number - 2; i >= 0; i-- {
		l := d.log[i]
		if l.typ == recFlush {
			flushed = true
			continue
		}
		if !flushed && l.flags&flagFUA == 0 {
			continue
		}
		for b := l.off / blockOf; b < (l.off+uint64(l.n))/blockOf; b++ {
			need[b] = max(need[b], i+1)
		}
	}
	for b, n := range need {
		if d.stable[b] < n {
			d.t.Errorf("record %d is on its way while block %d has record %d on the storage, and not %d", number, b, d.stable[b], n)
		}
	}
}

func (d *cachedDisk) WriteAt(p []byte, off int64, fua bool) error {
	from, to := int(off/blockOf), int(off/blockOf)+len(p)/blockOf
	of := func(block int) int { return int(p[(block-from)*blockOf]) | int(p[(block-from)*blockOf+1])<<8 }
	d.mu.Lock()
	for b := from; b < to; b++ {
		if d.busy[b] {
			d.t.Errorf("two changes of block %d at once", b)
		}
		d.busy[b] = true
		d.ordered(of(b))
	}
	d.mu.Unlock()
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond) // of a synctest bubble
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fails > 0 {
		if d.fails--; d.fails == 0 {
			return errMedium
		}
	}
	for b := from; b < to; b++ {
		d.busy[b] = false
		if d.cache[b] = of(b); fua {
			d.stable[b] = d.cache[b]
		}
	}
	if fua {
		d.forced++
	}
	return nil
}

func (d *cachedDisk) Flush() error {
	d.mu.Lock()
	was := d.cache
	d.mu.Unlock()
	time.Sleep(time.Millisecond)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	for b, n := range was {
		d.stable[b] = max(d.stable[b], n)
	}
	return nil
}

// write appends a write of blocks, whose content is its number in the log.
func (d *cachedDisk) write(at, n int, fua bool) {
	number := len(d.log) + 1
	body := make([]byte, n*blockOf)
	for i := 0; i < len(body); i += blockOf {
		body[i], body[i+1] = byte(number), byte(number>>8)
	}
	d.log = append(d.log, logged{record: record{typ: recWrite, flags: fuaFlag(fua), n: uint32(len(body)), off: uint64(at * blockOf)}, body: body})
}

func (d *cachedDisk) flush() { d.log = append(d.log, logged{record: record{typ: recFlush}}) }

// Whatever the domain wrote and flushed, and when: nothing reaches the backup's disk
// before all that it may depend on is on stable storage, no two writes to one place
// are under way, and in the end the newest one is there.
func TestCommitKeepsOrder(t *testing.T) {
	r := newRand(t)
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			d := &cachedDisk{t: t}
			repl := NewReplica(d, nil)
			want, from := [blocks]int{}, 0
			for range 1 + r.IntN(3) { // commits
				for range r.IntN(120) {
					if r.IntN(4) == 0 {
						d.flush()
						continue
					}
					at := r.IntN(blocks)
					n := 1 + r.IntN(min(4, blocks-at))
					d.write(at, n, r.IntN(8) == 0)
					for b := at; b < at+n; b++ {
						want[b] = len(d.log)
					}
				}
				if err := repl.commitAll(&epochLog{recs: d.log[from:]}, true); err != nil {
					t.Fatal(err)
				}
				from = len(d.log)
				if d.cache != want {
					t.Fatalf("the disk has %v, want %v", d.cache, want)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
}

// A database's commit, a write and a flush again and again, is one write with FUA
// each time; a flush with nothing to make durable is none.
func TestFlushOfOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &cachedDisk{t: t}
		repl := NewReplica(d, nil)
		d.flush() // what came before this process
		for range 5 {
			d.write(3, 1, false)
			d.write(4, 2, false) // beside it
			d.flush()
		}
		d.write(9, 1, true)
		d.flush()
		if err := repl.commitAll(&epochLog{recs: d.log}, true); err != nil {
			t.Fatal(err)
		}
		if d.flushes != 1 || d.forced != 6 {
			t.Errorf("%d flushes and %d writes with FUA, want 1 and 6", d.flushes, d.forced)
		}
		d.log, d.cache, d.stable = nil, [blocks]int{}, [blocks]int{}
		d.write(3, 1, false)
		d.write(5, 1, false)
		d.flush()
		if err := repl.commitAll(&epochLog{recs: d.log}, true); err != nil || d.flushes != 2 || d.forced != 6 {
			t.Errorf("two writes: %d flushes, %d with FUA, %v", d.flushes, d.forced, err)
		}
	})
}

// A write that fails ends the commit: nothing after the next barrier is written,
// and the copy failed.
func TestCommitFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &cachedDisk{t: t, fails: 5}
		repl := NewReplica(d, nil)
		for i := range 10 {
			d.write(2*i, 1, false)
		}
		d.flush()
		d.write(60, 1, false)
		err := repl.commitAll(&epochLog{recs: d.log}, true)
		var de *diskError
		if !errors.Is(err, errMedium) || !errors.As(err, &de) || repl.Failed() == nil {
			t.Errorf("%v, failed %v", err, repl.Failed())
		}
		if d.flushes > 0 || d.cache[60] != 0 {
			t.Errorf("%d flushes, and block 60 has record %d", d.flushes, d.cache[60])
		}
	})
}

// Bodies that are in the spill file are not all in memory at once.
func TestCommitFromFile(t *testing.T) {
	const size, limit = 64 << 20, 24 << 20
	here, there := newMemory(size), newMemory(size)
	p := newSpillingPair(t, here, there, limit, limit-1<<20)
	p.started()
	r := newRand(t)
	body := make([]byte, 3<<20+512)
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	for range 6 {
		p.m.WriteAt(body, r.Int64N(size-int64(len(body))), false)
	}
	p.seal(2)
	p.commit(2)
	p.same("committed", here.image())
	p.link.Detach()
	<-p.ended
}

// A first copy is written while more of it arrives, many chunks at once, and what the
// domain flushes meanwhile keeps nothing apart: it is no copy yet. All of it is
// written, and flushed, before its epoch is committed.
func TestFirstCopyIsDeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunks = 256
		here, there := newMemory(chunks*ChunkSize), newMemory(chunks*ChunkSize)
		for i := range chunks {
			here.b[i*ChunkSize+i] = 1
		}
		there.slow = time.Millisecond
		a, b := net.Pipe()
		p := unjoined(t, here, there, there, a, b)
		begun := time.Now()
		p.join(a, 1<<20)
		if err := p.link.AwaitSync(); err != nil {
			t.Fatal(err)
		}
		p.m.WriteAt([]byte{2}, 5, true)
		p.m.Flush()
		p.m.WriteAt([]byte{3}, 5*ChunkSize, true)
		p.m.Flush()
		p.seal(1)
		if d := time.Since(begun); d > chunks*time.Millisecond/4 {
			t.Errorf("%d chunks of a millisecond each took %v", chunks, d)
		}
		p.same("sealed", here.image())
		there.awaitFlush() // before the chunks are hashed, and after the last of them
		if there.syncs != 2 || there.fua > 0 {
			t.Errorf("%d flushes and %d writes with FUA", there.syncs, there.fua)
		}
		p.commit(1)
		p.link.Detach()
		<-p.ended
	})
}

// BenchmarkCommit commits epochs to a file of 1 GiB, past the page cache and through it:
// 4,000 random writes of 4 KiB, as many adjacent ones, and 200 that are flushed one by
// one. -commit.dir says where the file is.
func BenchmarkCommit(b *testing.B) {
	const size = 1 << 30
	dir := *commitDir
	if dir == "" {
		dir = b.TempDir()
	}
	name := filepath.Join(dir, "commit-bench")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(name)
	chunk := make([]byte, 1<<20)
	all, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	for range size >> 20 { // written once, so that nothing is allocated later
		if _, err := all.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(all.Sync(), all.Close()); err != nil {
		b.Fatal(err)
	}
	for _, cache := range []string{"none", "writeback"} {
		f, err := blockfile.Open(name, cache == "none")
		if err != nil {
			b.Skip(err)
		}
		for _, c := range []struct {
			name     string
			writes   int
			adjacent bool
			flush    bool
		}{{"random", 4000, false, false}, {"adjacent", 4000, true, false}, {"flushed", 200, false, true}} {
			b.Run(fmt.Sprintf("cache=%s/%s", cache, c.name), func(b *testing.B) {
				r := newRand(b)
				repl := NewReplica(f, nil)
				body := make([]byte, 4<<10)
				var log epochLog
				for i := range c.writes {
					off := r.Uint64N(size>>12) << 12
					if c.adjacent {
						off = uint64(i) << 12
					}
					log.recs = append(log.recs, logged{record: record{typ: recWrite, n: 4 << 10, off: off}, body: body})
					if c.flush {
						log.recs = append(log.recs, logged{record: record{typ: recFlush}})
					}
				}
				for b.Loop() {
					if err := repl.commitAll(&log, true); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(c.writes*b.N)/b.Elapsed().Seconds(), "writes/s")
			})
		}
		f.Close()
	}
}

var commitDir = flag.String("commit.dir", "", "directory of BenchmarkCommit's file; a temporary one if it is not set")

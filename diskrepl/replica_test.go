package diskrepl

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// What is written to an epoch waits for its commit, with its order and its
// flushes.
func TestHeldBack(t *testing.T) {
	p := newPair(t, newMemory(1<<20), newMemory(1<<20), 1<<20)
	p.started()
	p.there.awaitFlush() // of the first copy
	before := p.there.image()
	p.m.WriteAt([]byte("one"), 100, false)
	p.m.Flush()
	p.m.WriteAt([]byte("two"), 101, true)
	p.seal(2)
	p.same("sealed, not committed", before)
	p.commit(2)
	p.same("committed", p.here.image())
	if p.there.syncs != 3 || p.there.fua != 1 {
		t.Errorf("the backup's disk saw %d flushes and %d writes with FUA, want 3 and 1", p.there.syncs, p.there.fua)
	}
}

// Nothing touches a disk whose replica was closed: it may be another's by then.
func TestCloseIsTheEnd(t *testing.T) {
	p := newPair(t, newMemory(1<<20), newMemory(1<<20), 1<<20)
	p.started()
	p.m.WriteAt([]byte("late"), 0, false)
	p.seal(2)
	before := p.there.image()
	p.r.Close()
	if err := p.r.Commit(2); !errors.Is(err, ErrDetached) {
		t.Errorf("commit after the end: %v", err)
	}
	if err := p.r.Finish(2); !errors.Is(err, ErrDetached) {
		t.Errorf("finish after the end: %v", err)
	}
	if err := p.r.Run(); !errors.Is(err, ErrDetached) {
		t.Errorf("run after the end: %v", err)
	}
	p.same("closed", before)
	<-p.ended
}

// What has no room in memory is held back in the file, round and round in it,
// and a file that fails ends the session.
func TestSpill(t *testing.T) {
	const file = 1 << 20
	p := newSpillingPair(t, newMemory(2<<20), newMemory(2<<20), file+64<<10, file)
	p.started()
	r := newRand(t)
	p.r.spill.size = file // so small that it is gone round in
	for e := uint64(2); e < 12; e++ {
		before := p.there.image()
		for range 12 {
			b := bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(64<<10))
			p.m.WriteAt(b, r.Int64N(2<<20-int64(len(b))), false)
		}
		p.seal(e)
		if st := p.r.Status(); st.Spilled == 0 || st.Journal > 64<<10+12*heldSize {
			t.Errorf("epoch %d: %+v", e, st)
		}
		p.same("sealed", before)
		p.commit(e)
		p.same("committed", p.here.image())
		if st := p.r.Status(); st.Spilled != 0 || st.Journal != 0 {
			t.Errorf("after the commit of epoch %d: %+v", e, st)
		}
	}
	if p.r.spill.tail < 2*file {
		t.Errorf("%d bytes went through the file", p.r.spill.tail)
	}
	p.r.mu.Lock()
	p.r.spill.f = broken{}
	p.r.mu.Unlock()
	for range 12 {
		p.m.WriteAt(make([]byte, 32<<10), 0, false)
	}
	if err := <-p.ended; err == nil || !strings.Contains(err.Error(), "journal file: no space") {
		t.Errorf("a file that fails: %v", err)
	}
}

// rotten is a file in which a bit is lost.
type rotten struct{ SpillFile }

func (r rotten) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.SpillFile.ReadAt(p, off)
	p[0] ^= 0x40
	return n, err
}

// The file gives back something else than it was given: a commit does not write
// that to the disk, nor a takeover to shared storage.
func TestSpillRot(t *testing.T) {
	p := newSpillingPair(t, newMemory(1<<20), newMemory(1<<20), 1<<20, 1<<20)
	p.started()
	p.m.WriteAt([]byte("data"), 0, false)
	p.seal(2)
	p.r.spill.f = rotten{p.r.spill.f}
	if err := p.r.Commit(2); err == nil || !strings.Contains(err.Error(), "CRC-32C") {
		t.Errorf("commit: %v", err)
	}
	p.same("committed", make([]byte, 1<<20))

	disk := newMemory(1 << 20)
	s := newSharedPair(t, disk, 1<<20, 1<<20)
	s.started()
	s.m.WriteAt([]byte("data"), 0, false)
	s.seal(2)
	if err := s.r.Commit(2); err != nil {
		t.Fatal(err)
	}
	s.m.GiveUp()
	s.r.spill.f = rotten{s.r.spill.f}
	if err := s.r.Finish(2); err == nil || !strings.Contains(err.Error(), "CRC-32C") {
		t.Errorf("takeover: %v", err)
	}
	if disk.b[0] != 0 {
		t.Error("the storage has what the file gave back")
	}
}

type broken struct{ SpillFile }

func (broken) WriteAt([]byte, int64) (int, error) { return 0, errors.New("no space") }

// stuck is a disk whose writes wait.
type stuck struct {
	*memory
	let chan struct{}
}

func (d stuck) WriteAt(p []byte, off int64, fua bool) error {
	<-d.let
	return d.memory.WriteAt(p, off, fua)
}

// Two ask for the same commit, as a session that ends does beside the one that
// had begun, while the commit before is under way: it is done once, for both.
func TestCommitTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := newMemory(1 << 20)
		slow := stuck{there, make(chan struct{})}
		a, b := net.Pipe()
		p := unjoined(t, newMemory(1<<20), there, slow, a, b)
		p.join(a, 1<<20)
		p.started()
		var wg sync.WaitGroup
		for e := uint64(2); e <= 3; e++ {
			p.m.WriteAt([]byte{byte(e)}, int64(e), false)
			p.seal(e)
			for range e - 1 {
				wg.Go(func() {
					if err := p.r.Commit(e); err != nil {
						t.Errorf("commit of epoch %d: %v", e, err)
					}
				})
			}
			synctest.Wait()
		}
		close(slow.let)
		synctest.Wait()
		p.same("committed", p.here.image())
		p.link.Detach()
		<-p.ended
		wg.Wait()
	})
}

// A takeover comes in the middle of a commit: it waits for all of the epoch.
func TestFinishWaitsForCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := newMemory(1 << 20)
		slow := stuck{there, make(chan struct{})}
		a, b := net.Pipe()
		p := unjoined(t, newMemory(1<<20), there, slow, a, b)
		p.join(a, 1<<20)
		p.started()
		p.m.WriteAt([]byte("newest"), 7, false)
		p.seal(2)
		want := p.here.image()
		committed, finished := make(chan error, 1), make(chan error, 1)
		go func() { committed <- p.r.Commit(2) }()
		synctest.Wait()
		go func() { finished <- p.r.Finish(2) }()
		synctest.Wait()
		select {
		case err := <-finished:
			t.Errorf("it did not wait for the disk: %v", err)
		default:
		}
		close(slow.let)
		if err := errors.Join(<-committed, <-finished); err != nil {
			t.Error(err)
		}
		p.same("taken over", want)
		<-p.ended
	})
}

// The backup's disk fails: the primary hears why, and its own writes go on.
func TestBackupDiskFails(t *testing.T) {
	p := newPair(t, newMemory(1<<20), newMemory(1<<20), 1<<20)
	p.started()
	p.there.awaitFlush() // of the first copy
	p.there.setFail(errors.New("medium error"))
	p.m.WriteAt([]byte("x"), 0, false)
	p.seal(2)
	if err := p.r.Commit(2); err == nil || !strings.Contains(err.Error(), "medium error") {
		t.Errorf("commit: %v", err)
	}
	if err := <-p.lost; !strings.Contains(err.Error(), "medium error") {
		t.Errorf("the primary is told: %v", err)
	}
	if err := p.m.WriteAt([]byte("y"), 0, false); err != nil {
		t.Errorf("write without a backup: %v", err)
	}
	if err := p.r.Finish(2); err == nil {
		t.Error("a disk that failed was taken over")
	}
}

// A primary that sends more than it was told it may has its session ended, and not
// this host's memory filled: with long writes, and with a great many short ones, with
// a file and without.
func TestLimitIsKept(t *testing.T) {
	for _, n := range []int{0, 512, 1 << 20} {
		for _, file := range []int64{0, 256 << 10} {
			a, b := net.Pipe()
			r := NewReplica(newMemory(2<<20), b)
			const limit = 1 << 20
			r.Limit(limit)
			if file > 0 {
				r.SpillTo(new(ramSpill), file, limit-file)
			}
			ended := make(chan error, 1)
			go func() { ended <- r.Run() }()
			var s sum
			first := record{typ: recSynced, epoch: 1}.append(nil)
			s.add(1, first)
			a.Write(s.append(record{typ: recSeal, n: sealSize, epoch: 1}.append(first)))
			rec := append(record{typ: recWrite, n: uint32(n), epoch: 2}.append(nil), make([]byte, n)...)
			if n == 0 {
				rec = record{typ: recFlush, epoch: 2}.append(nil)
			}
			batch := 1
			if n < 1<<20 {
				batch = 4096
			}
			rec = bytes.Repeat(rec, batch)
			sent := 0
			go io.Copy(io.Discard, a)
			for ; ; sent += batch {
				if _, err := a.Write(rec); err != nil {
					break
				}
				if int64(sent)*(heldSize+int64(n)) > limit+2*maxBody {
					t.Errorf("bodies of %d bytes, file of %d: %d were taken", n, file, sent)
					break
				}
			}
			a.Close()
			if err := <-ended; err == nil || !strings.Contains(err.Error(), "are held back, the limit is 1048576") && !strings.Contains(err.Error(), "the journal is full") {
				t.Errorf("bodies of %d bytes, file of %d: %v", n, file, err)
			}
		}
	}
}

// ramSpill is a SpillFile that keeps nothing.
type ramSpill struct{}

func (*ramSpill) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (*ramSpill) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }

package diskrepl

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

var verifyRounds = flag.Int("disk.verify", 150, "how often the copies are compared while writers write")

// pump ends epochs, one after the other, until stop is called or the session ends.
func (p *pair) pump(from uint64) (stop func() (next uint64)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	e := from
	wg.Go(func() {
		for ; ctx.Err() == nil; e++ {
			if p.link.Seal(e) != nil || p.r.AwaitSealed(context.Background(), e) != nil || p.r.Commit(e) != nil {
				return
			}
			p.link.Release(e)
		}
	})
	return sync.OnceValue(func() uint64 {
		cancel()
		wg.Wait()
		return e
	})
}

// compare returns what Verify reports.
func (p *pair) compare(c Comparison) (all []Difference, err error) {
	last := Compared{}
	err = p.link.Verify(p.t.Context(), c, func(now Compared, diff []Difference) error {
		if now.Compared < last.Compared || now.Total != p.m.Size() {
			p.t.Errorf("progress %+v after %+v", now, last)
		}
		last = now
		all = append(all, diff...)
		return nil
	})
	if err == nil && last.Compared != last.Total {
		p.t.Errorf("compared %+v", last)
	}
	return all, err
}

// However writes, flushes and ends of epochs meet a comparison, copies that are
// equal never seem to differ.
func TestVerifyUnderWriters(t *testing.T) {
	r := newRand(t)
	p := newPair(t, newMemory(12*ChunkSize+777), newMemory(12*ChunkSize+777), 2<<20)
	p.started()
	done, stop := make(chan struct{}), p.pump(2)
	halt := sync.OnceFunc(func() { close(done) })
	defer halt()
	writers := scribble(p.m, r, 1<<30, done)
	for range *verifyRounds {
		diff, err := p.compare(Comparison{})
		if err != nil || len(diff) > 0 {
			t.Fatalf("%+v, %v", diff, err)
		}
	}
	halt()
	writers.Wait()
	t.Logf("%d comparisons of %d chunks in %d epochs", *verifyRounds, 13, stop())
}

// A byte that differs is found wherever it is, in the chunk that has it and in no
// other, while writers write elsewhere; and repaired it is equal.
func TestVerifyFindsEachByte(t *testing.T) {
	r := newRand(t)
	const size = 2*ChunkSize + 777
	here := newMemory(size + 4*ChunkSize)
	for i := range size {
		here.b[i] = byte(r.Uint32())
	}
	p := newPair(t, here, newMemory(size+4*ChunkSize), 2<<20)
	p.started()
	done, stop := make(chan struct{}), p.pump(2)
	halt := sync.OnceFunc(func() { close(done) })
	defer halt()
	var wg sync.WaitGroup
	own := rand.New(rand.NewPCG(r.Uint64(), 1))
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				p.m.WriteAt([]byte{byte(own.Uint32())}, size+ChunkSize+own.Int64N(2*ChunkSize), false)
			}
		}
	})
	for at := r.IntN(8191); at < size; at += 8191 {
		p.there.mu.Lock()
		p.there.b[at] ^= 1 << r.IntN(8)
		p.there.mu.Unlock()
		chunk := int64(at) / ChunkSize * ChunkSize
		for _, repair := range []bool{false, true} {
			got, err := p.compare(Comparison{Repair: repair})
			if err != nil || !slices.Equal(got, []Difference{{Offset: chunk, Length: ChunkSize, Repaired: repair}}) {
				t.Fatalf("byte %d differs, repair %v: %+v, %v", at, repair, got, err)
			}
		}
	}
	if got, err := p.compare(Comparison{}); err != nil || len(got) > 0 {
		t.Errorf("after the repairs: %+v, %v", got, err)
	}
	halt()
	wg.Wait()
	next := stop()
	want := p.here.image()
	p.seal(next)
	p.commit(next)
	p.same("after the repairs", want)
}

// A repair is a write of its epoch: while the epoch is not committed the copy stays
// as it was, and a next session by what is known to have changed has it.
func TestRepairBelongsToItsEpoch(t *testing.T) {
	here := newMemory(4 * ChunkSize)
	for i := range here.b {
		here.b[i] = 7
	}
	p := newPair(t, here, newMemory(4*ChunkSize), 1<<20)
	p.started()
	p.there.mu.Lock()
	p.there.b[5] = 9
	p.there.mu.Unlock()
	found := make(chan error, 1)
	go func() {
		_, err := p.compare(Comparison{Repair: true})
		found <- err
	}()
	p.m.mu.Lock()
	for len(p.m.session.verify.asked) < 4 {
		p.m.cond.Wait()
	}
	p.m.mu.Unlock()
	p.seal(2)
	p.commit(2)
	p.m.mu.Lock()
	for len(p.m.session.verify.asked) == 0 || !p.m.session.verify.asked[0].again {
		p.m.cond.Wait()
	}
	p.m.mu.Unlock()
	p.seal(3)
	if got := p.there.image()[5]; got != 9 {
		t.Errorf("%d before the commit", got)
	}
	p.commit(3)
	if got := p.there.image()[5]; got != 7 {
		t.Errorf("%d after the commit", got)
	}
	if err := <-found; err != nil {
		t.Error(err)
	}
}

// unreadable is a disk with a part that can't be read.
type unreadable struct {
	*memory
	mu sync.Mutex
	at int64 // -1: all can be read
}

func (d *unreadable) ReadAt(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off <= d.at && d.at < off+int64(len(p)) {
		return errMedium
	}
	return d.memory.ReadAt(p, off)
}

func (d *unreadable) set(at int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = at
}

// What can't be read is a difference, which says on which host; the rest is
// compared, and the session goes on.
func TestVerifyUnreadable(t *testing.T) {
	here, there := &unreadable{memory: newMemory(4 * ChunkSize), at: -1}, &unreadable{memory: newMemory(4 * ChunkSize), at: -1}
	a, b := net.Pipe()
	p := unjoined(t, here.memory, there.memory, there, a, b)
	p.m = NewMirror(here)
	p.join(a, 1<<20)
	p.started()
	defer p.pump(2)()
	here.set(5)
	there.set(2*ChunkSize + 9)
	got, err := p.compare(Comparison{})
	want := []Difference{{Offset: 0, Length: ChunkSize, Unreadable: "primary"}, {Offset: 2 * ChunkSize, Length: ChunkSize, Unreadable: "backup"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// A comparison that was given up does not disturb the next one; a session that ends
// ends it.
func TestVerifyEnds(t *testing.T) {
	p := newPair(t, newMemory(40*ChunkSize), newMemory(40*ChunkSize), 1<<20)
	nothing := func(Compared, []Difference) error { return nil }
	if err := p.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	if err := p.link.Verify(t.Context(), Comparison{}, nothing); !errors.Is(err, errVerifyEarly) {
		t.Errorf("before the first commit: %v", err)
	}
	p.started()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.link.Verify(ctx, Comparison{}, nothing) }()
	p.m.mu.Lock()
	for len(p.m.session.verify.asked) < verifyWindow {
		p.m.cond.Wait()
	}
	p.m.mu.Unlock()
	if err := p.link.Verify(t.Context(), Comparison{}, nothing); !errors.Is(err, errVerifyBusy) {
		t.Errorf("a second one: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	stop := p.pump(2)
	if got, err := p.compare(Comparison{}); err != nil || len(got) > 0 {
		t.Errorf("the next one: %+v, %v", got, err)
	}
	why := errors.New("enough")
	if err := p.link.Verify(t.Context(), Comparison{}, func(Compared, []Difference) error { return why }); !errors.Is(err, why) {
		t.Errorf("a report that fails: %v", err)
	}
	stop()
	go func() { ended <- p.link.Verify(t.Context(), Comparison{}, nothing) }()
	p.breaker.Close()
	if err := <-ended; err == nil {
		t.Error("no error though the session ended")
	}
	if err := p.link.Verify(t.Context(), Comparison{}, nothing); err == nil {
		t.Error("no error after the session")
	}
}

// A replica that does not know the record is not sent it.
func TestVerifyUnknown(t *testing.T) {
	p := newPair(t, newMemory(ChunkSize), newMemory(ChunkSize), 1<<20)
	p.started()
	p.m.mu.Lock()
	p.m.session.verify.known = false
	p.m.mu.Unlock()
	if err := p.link.Verify(t.Context(), Comparison{}, nil); !errors.Is(err, ErrVerifyUnknown) {
		t.Error(err)
	}
}

// A VERIFY has no place before the first commit, and in no journal.
func TestVerifyOutOfItsPlace(t *testing.T) {
	early := record{typ: recVerify, n: 512, epoch: 1}.append(nil)
	if _, err := take(newMemory(512), early); err == nil || !strings.Contains(err.Error(), "VERIFY at offset 0: of 512 bytes out of its place") {
		t.Errorf("in the first copy: %v", err)
	}
	var s sum
	b := record{typ: recVerify, n: 512, epoch: 2}.append(nil)
	s.add(1, b)
	b = s.append(record{typ: recSeal, n: sealSize, epoch: 2}.append(b))
	store := EpochDir(t.TempDir() + "/journal")
	f, err := store.Create(2)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(b, 0)
	f.Complete()
	if _, _, err := Newest(store, 512); !errors.Is(err, ErrJournalDamaged) {
		t.Errorf("in a journal: %v", err)
	}
}

// With a journal on stable storage a comparison leaves nothing in it, and what was
// acknowledged can be replayed.
func TestVerifyWithJournal(t *testing.T) {
	here, there, dir := newMemory(6*ChunkSize), newMemory(6*ChunkSize), EpochDir(t.TempDir()+"/journal")
	p := durablePair(t, here, there, dir)
	p.seal(1)
	p.commit(1)
	stop := p.pump(2)
	if got, err := p.compare(Comparison{}); err != nil || len(got) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
	e := stop()
	p.m.WriteAt(bytes.Repeat([]byte{3}, 512), 0, false)
	p.m.mu.Lock()
	p.link.append(record{typ: recVerify, n: 512, epoch: e}, nil)
	p.m.mu.Unlock()
	p.seal(e)
	p.r.Close()
	disk := newMemory(6 * ChunkSize)
	if _, newest, err := Newest(dir, disk.Size()); newest != e || err != nil {
		t.Fatalf("newest %d, %v, want %d", newest, err, e)
	}
	if err := Replay(disk, dir, e); err != nil || disk.b[511] != 3 {
		t.Errorf("replayed: %v, byte %d", err, disk.b[511])
	}
}

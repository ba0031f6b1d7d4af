package diskrepl

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// unjoined is a pair whose replica writes to dev, which may be there in another guise.
func unjoined(t testing.TB, here, there *memory, dev Device, a, b net.Conn) *pair {
	t.Cleanup(func() { a.Close(); b.Close() })
	return &pair{t: t, here: here, there: there, m: NewMirror(here), r: NewReplica(dev, b),
		ended: make(chan error, 1), lost: make(chan error, 1), breaker: a}
}

// join begins the session over the mirror's end of the connection.
func (p *pair) join(a net.Conn, limit int64) {
	p.t.Helper()
	go func() { p.ended <- p.r.Run() }()
	var err error
	if p.link, err = p.m.Attach(a, Options{Limit: limit, Lost: func(err error) { p.lost <- err }}); err != nil {
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
			// The domain stands still while it is sealed, and its disk is looked at.
			close(stop)
			wg.Wait()
			want := here.image()
			p.seal(e)
			// No more than an epoch has room for: they are waited for before its seal.
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
	if p.there.syncs != 2 || p.there.fua != 1 {
		t.Errorf("the backup's disk saw %d flushes and %d writes with FUA, want 2 and 1", p.there.syncs, p.there.fua)
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

// What has no room in memory is held back in the file, round and round in it, and a file that fails ends the session.
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
		if st := p.r.Status(); st.Spilled == 0 || st.Journal > 64<<10+12*headerSize {
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

type broken struct{ SpillFile }

func (broken) WriteAt([]byte, int64) (int, error) { return 0, errors.New("no space") }

// A backup that can't hold more makes writers wait; a release lets them go on,
// and so does the end of the link.
func TestLimit(t *testing.T) {
	for _, end := range []string{"release", "detach"} {
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

// stream is what a mirror sends for two epochs.
func stream(t testing.TB) []byte {
	a, b := net.Pipe()
	m := NewMirror(newMemory(512))
	l, err := m.Attach(a, Options{Limit: 1 << 20, Lost: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	done := make(chan struct{})
	go func() { defer close(done); got.ReadFrom(b) }()
	zero := record{typ: recHashes, n: hashSize}.append(nil)
	b.Write(append(zero, make([]byte, hashSize)...))
	if err := l.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	l.Seal(1)
	m.WriteAt([]byte("hello"), 5, true)
	m.Zero(10, 20, true, false)
	m.Trim(256, 256, false)
	m.Flush()
	l.Seal(2)
	for {
		m.mu.Lock()
		idle := l.queued == 0 && len(l.queue) == 0
		m.mu.Unlock()
		if idle {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond)
	l.Detach()
	<-done
	return got.Bytes()
}

// take feeds a replica a stream that then ends, and returns the newest epoch
// that came whole.
func take(dev Device, s []byte) (uint64, error) {
	a, b := net.Pipe()
	r := NewReplica(dev, b)
	go func() {
		a.Write(s)
		a.Close()
	}()
	go func() {
		var sink [4096]byte
		for {
			if _, err := a.Read(sink[:]); err != nil {
				return
			}
		}
	}()
	done := make(chan struct{})
	go func() {
		for e := uint64(1); r.AwaitSealed(context.Background(), e) == nil; e++ {
			if r.Commit(e) != nil {
				break
			}
		}
		close(done)
	}()
	err := r.Run()
	<-done
	r.Close()
	return r.Status().Committed, err
}

// A stream that stops at any byte, or has any bit of it turned, is never taken
// for whole.
func TestDamagedStream(t *testing.T) {
	s := stream(t)
	whole, err := take(newMemory(512), s)
	if whole != 2 {
		t.Fatalf("%d bytes, %d epochs: %v", len(s), whole, err)
	}
	for n := range len(s) {
		if e, err := take(newMemory(512), s[:n]); e >= 2 || err == nil {
			t.Errorf("cut at %d of %d: %d epochs, error %v", n, len(s), e, err)
		}
	}
	for i := range s {
		bad := bytes.Clone(s)
		bad[i] ^= 1 << (i % 8)
		if e, err := take(newMemory(512), bad); e >= 2 {
			t.Errorf("bit turned at %d of %d: %d epochs, error %v", i, len(s), e, err)
		}
	}
}

func FuzzReplica(f *testing.F) {
	f.Add(stream(f))
	f.Fuzz(func(t *testing.T, s []byte) { take(newMemory(512), s) })
}

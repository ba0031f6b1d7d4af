package diskrepl

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// A volatile disk loses any of the writes that were not flushed when its host
// loses power.
type volatile struct {
	*memory
	safe  []byte
	since []func(b []byte)
}

func newVolatile(m *memory) *volatile { return &volatile{memory: m, safe: m.image()} }

func (v *volatile) note(f func(b []byte)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.since = append(v.since, f)
}

func (v *volatile) WriteAt(p []byte, off int64, fua bool) error {
	b := bytes.Clone(p)
	v.note(func(img []byte) { copy(img[off:], b) })
	return v.memory.WriteAt(p, off, fua)
}

func (v *volatile) Zero(off, n int64, _, fua bool) error { return v.WriteAt(make([]byte, n), off, fua) }
func (v *volatile) Trim(off, n int64, fua bool) error    { return v.WriteAt(make([]byte, n), off, fua) }

func (v *volatile) Flush() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.safe, v.since = bytes.Clone(v.b), nil
	return nil
}

// crash returns a disk as it may be after its host crashed.
func (v *volatile) crash(r *rand.Rand) *memory {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := &memory{b: bytes.Clone(v.safe)}
	for _, f := range v.since {
		if r.IntN(2) == 0 {
			f(m.b)
		}
	}
	return m
}

// durablePair returns two disks in sync. The replica keeps its journal in dir.
func durablePair(t *testing.T, here *memory, there Device, dir EpochDir) *pair {
	t.Helper()
	a, b := net.Pipe()
	p := &pair{t: t, here: here, m: NewMirror(here), r: NewReplica(there, b), ended: make(chan error, 1), breaker: a}
	p.r.every = time.Hour // tests count flushes
	p.r.Durable(dir)
	go func() { p.ended <- p.r.Run() }()
	var err error
	if p.link, err = p.m.Attach(a, Options{Limit: 8 << 20, Verify: true, Lost: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	if err := p.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	return p
}

// The backup's host crashes at any time: with a journal its disk can be brought
// to exactly the newest epoch that was acknowledged, or to one after it.
func TestDurable(t *testing.T) {
	r := newRand(t)
	for round := range 40 {
		here, there := newMemory(1<<20), newMemory(1<<20)
		disk := newVolatile(there)
		dir := filepath.Join(t.TempDir(), "journal")
		p := durablePair(t, here, disk, EpochDir(dir))
		some := func() {
			for range r.IntN(6) {
				change(p.m, r)
			}
		}
		p.seal(1)
		p.commit(1)
		disk.Flush() // as the receiver does when the first copy is there
		at := map[uint64][]byte{1: here.image()}
		acked := uint64(1)
		for e := uint64(2); e < 2+r.Uint64N(6); e++ {
			some()
			at[e] = here.image()
			p.seal(e)
			acked = e
			if r.IntN(4) == 0 {
				break // acked, and not committed
			}
			p.commit(e)
		}
		some() // of an epoch that is not sealed

		// After the crash the host has the journal as it was synced, and the
		// disk as it may be.
		left := t.TempDir()
		if err := os.CopyFS(left, os.DirFS(dir)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		after := disk.crash(r)
		p.breaker.Close()
		<-p.ended
		p.r.Close()

		n, err := replay(after, EpochDir(left))
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			n = 1 // the first copy is in no journal
		}
		if n < acked || !bytes.Equal(after.b, at[n]) {
			t.Errorf("round %d: %d epochs were acked; after the crash the disk is not that of epoch %d", round, acked, n)
		}
	}
}

// dyingDisk fails every write after so many.
type dyingDisk struct {
	*memory
	left atomic.Int64
}

func (d *dyingDisk) WriteAt(p []byte, off int64, fua bool) error {
	if d.left.Add(-1) < 0 {
		return errors.New("the host lost its power")
	}
	return d.memory.WriteAt(p, off, fua)
}

// The host dies in the middle of a commit, and one bit of the journal's newest
// epoch, which was acknowledged, is lost: the disk is torn, and no promotion may
// take it for a checkpoint.
func TestDurableRotOfTornCommit(t *testing.T) {
	there := &dyingDisk{memory: newMemory(1 << 20)}
	there.left.Store(1 << 20)
	dir := EpochDir(filepath.Join(t.TempDir(), "journal"))
	p := durablePair(t, newMemory(1<<20), there, dir)
	p.seal(1)
	p.commit(1)
	for i := range 8 {
		p.m.WriteAt([]byte{byte(i)}, int64(i)<<12, false)
	}
	p.seal(2)
	there.left.Store(3)
	if err := p.r.Commit(2); err == nil {
		t.Fatal("the disk took it")
	}
	<-p.ended
	p.r.Close()
	name := filepath.Join(string(dir), "whole-2")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[headerSize] ^= 1
	os.WriteFile(name, b, 0o600)
	if _, _, err := Newest(dir, 1<<20); !errors.Is(err, ErrJournalDamaged) {
		t.Errorf("the newest epoch: %v", err)
	}
}

// replay brings a disk to the newest epoch of a journal.
func replay(disk Device, store EpochStore) (uint64, error) {
	_, n, err := Newest(store, disk.Size())
	if err != nil || n == 0 {
		return n, err
	}
	return n, Replay(disk, store, n)
}

// The disk fails during a commit: the journal stays, and brings the disk to
// that epoch when it works again.
func TestDurableDiskFails(t *testing.T) {
	here, there := newMemory(1<<20), newMemory(1<<20)
	dir := EpochDir(filepath.Join(t.TempDir(), "journal"))
	p := durablePair(t, here, there, dir)
	p.seal(1)
	p.commit(1)
	there.awaitFlush() // of the first copy
	r := newRand(t)
	for range 8 {
		change(p.m, r)
	}
	want := here.image()
	p.seal(2)
	there.setFail(errors.New("medium error"))
	if err := p.r.Commit(2); err == nil {
		t.Error("a disk that fails took an epoch in")
	}
	<-p.ended
	p.r.Close()
	there.setFail(nil)
	if n, err := replay(there, dir); n != 2 || err != nil || !bytes.Equal(there.b, want) {
		t.Errorf("brought to epoch %d, %v", n, err)
	}
}

// A torn journal ends at its last complete epoch. A journal that is damaged in
// the middle, or in an epoch of which a part may be on the disk, is refused.
func TestDurableTorn(t *testing.T) {
	dir := EpochDir(t.TempDir())
	write := func(epoch uint64, completed bool, damage func([]byte) []byte) {
		t.Helper()
		j := &journal{store: dir}
		rec := record{typ: recWrite, n: 4, off: 100 * epoch, epoch: epoch}
		if err := j.add(rec, []byte("data")); err != nil {
			t.Fatal(err)
		}
		f, err := j.seal(epoch)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(string(dir), fmt.Sprint(epochPrefix, epoch))
		if completed {
			if err := f.Complete(); err != nil {
				t.Fatal(err)
			}
			name = filepath.Join(string(dir), fmt.Sprint(wholePrefix, epoch))
		}
		f.Close()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(name, damage(b), 0o600)
	}
	whole := func(b []byte) []byte { return b }
	torn := func(b []byte) []byte { return b[:len(b)-1] }
	rotten := func(b []byte) []byte { b[30] ^= 1; return b }
	write(5, true, whole)
	write(6, false, torn)
	disk := newMemory(4096)
	if n, err := replay(disk, dir); n != 5 || err != nil || string(disk.b[500:504]) != "data" || disk.b[600] != 0 {
		t.Errorf("torn: epoch %d, %v", n, err)
	}
	if err := dir.Clear(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what           string
		older, newest  func([]byte) []byte
		whole, refused bool
	}{
		{"rot before the newest epoch", rotten, whole, true, true},
		{"rot before one that is not completed", rotten, whole, false, true},
		{"rot of the newest epoch", whole, rotten, true, true},
		{"a completed epoch that was cut", whole, torn, true, true},
		{"a tear that looks like rot", whole, rotten, false, false},
	} {
		if err := dir.Clear(); err != nil {
			t.Fatal(err)
		}
		write(5, true, c.older)
		write(6, c.whole, c.newest)
		disk = newMemory(4096)
		n, err := replay(disk, dir)
		if c.refused && (!errors.Is(err, ErrJournalDamaged) || disk.b[500] != 0 || disk.b[600] != 0) || !c.refused && (n != 5 || err != nil) {
			t.Errorf("%s: epoch %d, %v", c.what, n, err)
		}
	}
	// The only one: there is no older one that says that it was received.
	for _, completed := range []bool{true, false} {
		if err := dir.Clear(); err != nil {
			t.Fatal(err)
		}
		write(6, completed, rotten)
		if n, err := replay(disk, dir); n != 0 || errors.Is(err, ErrJournalDamaged) != completed {
			t.Errorf("alone, completed %v: epoch %d, %v", completed, n, err)
		}
	}
	if err := dir.Clear(); err != nil {
		t.Fatal(err)
	}
	if n, err := replay(disk, EpochDir(t.TempDir())); n != 0 || err != nil {
		t.Errorf("empty: epoch %d, %v", n, err)
	}
}

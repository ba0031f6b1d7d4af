package diskrepl

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
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
	p.r.Durable(dir)
	go func() { p.ended <- p.r.Run() }()
	var err error
	if p.link, err = p.m.Attach(a, Options{Limit: 8 << 20, Lost: func(error) {}}); err != nil {
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
// the middle is refused.
func TestDurableTorn(t *testing.T) {
	dir := EpochDir(t.TempDir())
	write := func(epoch uint64, damage func([]byte) []byte) {
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
		f.Close()
		name := filepath.Join(string(dir), fmt.Sprint(epochPrefix, epoch))
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(name, damage(b), 0o600)
	}
	whole := func(b []byte) []byte { return b }
	write(5, whole)
	write(6, func(b []byte) []byte { return b[:len(b)-1] })
	disk := newMemory(4096)
	if n, err := replay(disk, dir); n != 5 || err != nil || string(disk.b[500:504]) != "data" || disk.b[600] != 0 {
		t.Errorf("torn: epoch %d, %v", n, err)
	}
	if err := dir.Clear(); err != nil {
		t.Fatal(err)
	}
	write(5, func(b []byte) []byte { b[30] ^= 1; return b })
	write(6, whole)
	disk = newMemory(4096)
	if n, err := replay(disk, dir); err == nil || disk.b[500] != 0 || disk.b[600] != 0 {
		t.Errorf("damaged: epoch %d, %v", n, err)
	}
	if n, err := replay(disk, EpochDir(t.TempDir())); n != 0 || err != nil {
		t.Errorf("empty: epoch %d, %v", n, err)
	}
}

package diskrepl

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A sharedPair is a pair on one disk, with a model of what the domain sees.
type sharedPair struct {
	*pair // whose m is nil
	m     *Shared
	held  EpochDir
	model []byte
}

func newSharedPair(t testing.TB, disk *memory, limit, file int64) *sharedPair {
	s := &sharedPair{held: EpochDir(filepath.Join(t.TempDir(), "xvda")), model: disk.image()}
	m, err := NewShared(disk, s.held)
	if err != nil {
		t.Fatal(err)
	}
	s.join(t, m, disk, limit, file)
	return s
}

func (s *sharedPair) join(t testing.TB, m *Shared, there *memory, limit, file int64) {
	a, b := net.Pipe()
	p := &pair{t: t, there: there, r: NewReplica(there, b), ended: make(chan error, 1), lost: make(chan error, 1), breaker: a}
	s.pair, s.m = p, m
	p.r.Share()
	p.spill(limit, file)
	go func() { p.ended <- p.r.Run() }()
	var err error
	if p.link, err = m.Attach(a, Options{Limit: limit, Lost: func(err error) { p.lost <- err }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close(); m.Stop() })
}

// holding gives a pair in a session: what is written is held.
func holding(t testing.TB, disk *memory, limit int64) *sharedPair {
	t.Helper()
	s := newSharedPair(t, disk, limit, 0)
	if err := s.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	s.seal(1)
	s.commit(1)
	return s
}

// step does something to the disk and to the model, and looks at a part of it.
func (s *sharedPair) step(r *rand.Rand) {
	s.t.Helper()
	n := 1 + r.Int64N(9000)
	off := r.Int64N(s.m.Size() - n)
	var err error
	switch r.IntN(12) {
	case 0:
		err = s.m.Zero(off, n, r.IntN(2) == 0, false)
		clear(s.model[off : off+n])
	case 1:
		err = s.m.Trim(off, n, false) // of this disk: zeroes
		clear(s.model[off : off+n])
	case 2:
		err = s.m.Flush()
	default:
		p := s.model[off : off+n]
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		err = s.m.WriteAt(bytes.Clone(p), off, r.IntN(4) == 0)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	n = 1 + r.Int64N(20000)
	s.looks(r.Int64N(s.m.Size()-n), n)
}

// looks reads a range as the domain does.
func (s *sharedPair) looks(off, n int64) {
	s.t.Helper()
	b := make([]byte, n)
	if err := s.m.ReadAt(b, off); err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Equal(b, s.model[off:off+n]) {
		s.t.Fatalf("the domain reads other data at %d+%d than it wrote", off, n)
	}
}

// The domain reads what it wrote, wherever that is held; the storage has
// nothing of an epoch before its release, and after the end exactly what it has
// to: at a takeover the epochs that were committed, here all of them; also when
// the process that holds the writes is killed.
func TestSharedHistories(t *testing.T) {
	r := newRand(t)
	for round := range 60 {
		disk := newMemory(256 << 10)
		for i := range disk.b {
			disk.b[i] = byte(r.Uint32())
		}
		s := newSharedPair(t, disk, 1<<20, int64(round%2)*(1<<20-20<<10))
		some := func() {
			for range r.IntN(12) {
				s.step(r)
			}
		}
		some()
		if err := s.link.AwaitSync(); err != nil {
			t.Fatal(err)
		}
		some()
		at, done := map[uint64][]byte{}, uint64(0)
		for e := uint64(1); e <= 1+r.Uint64N(6); e++ {
			at[e] = bytes.Clone(s.model)
			s.seal(e)
			some()
			if e > 1 && r.IntN(4) == 0 {
				break // whole, and never acked
			}
			if err := s.r.Commit(e); err != nil {
				t.Fatal(err)
			}
			done = e
			some()
			if r.IntN(6) == 0 {
				break // acked, and the primary never heard of it
			}
			s.link.Release(e)
			some()
		}
		switch how := r.IntN(3); how {
		case 0: // the primary is dead, perhaps in the middle of writing
			if r.IntN(2) == 0 {
				if err := s.m.Drain(within(t)); err != nil {
					t.Fatal(err)
				}
			}
			s.m.GiveUp()
			if err := s.m.WriteAt([]byte("x"), 0, false); !errors.Is(err, ErrGivenUp) {
				t.Errorf("a write to a disk that was given up: %v", err)
			}
			if err := s.r.Finish(done); err != nil {
				t.Fatal(err)
			}
			s.same(fmt.Sprintf("round %d, taken over at epoch %d", round, done), at[done])
		default:
			if how == 2 {
				s.link.Detach()
				s.m.Stop()
				m, err := NewShared(disk, s.held)
				if err != nil {
					t.Fatal(err)
				}
				s.m = m
				s.looks(0, s.m.Size())
				some()
			}
			s.link.Detach()
			some()
			if err := s.m.ReleaseAll(); err != nil {
				t.Fatal(err)
			}
			some()
			if err := s.m.AwaitReleasedAll(within(t)); err != nil {
				t.Fatal(err)
			}
			some()
			s.same(fmt.Sprintf("round %d, alone", round), s.model)
			// And again, with the same store.
			s.join(t, s.m, disk, 1<<20, 0)
			if err := s.link.AwaitSync(); err != nil {
				t.Fatal(err)
			}
			s.seal(1)
			before := disk.image()
			some()
			s.same("held", before)
			s.commit(1)
			s.seal(2)
			s.commit(2)
			if err := s.m.Drain(within(t)); err != nil {
				t.Fatal(err)
			}
			s.same("released", s.model)
		}
		if disk.syncs == 0 {
			t.Error("no flush")
		}
		s.m.Stop()
	}
}

// Two disks that are not the same storage are found out, before a session if
// they differ and at the first writing if they do not.
func TestNotTheSameStorage(t *testing.T) {
	for _, blank := range []bool{false, true} {
		here, there := newMemory(1<<20), newMemory(1<<20)
		if !blank {
			there.b[0]++
		}
		m, err := NewShared(here, EpochDir(filepath.Join(t.TempDir(), "l")))
		if err != nil {
			t.Fatal(err)
		}
		s := &sharedPair{}
		s.join(t, m, there, 1<<20, 0)
		err = s.link.AwaitSync()
		if !blank {
			if !errors.Is(err, ErrOtherStorage) {
				t.Errorf("other contents: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		s.seal(1)
		s.commit(1)
		s.m.WriteAt([]byte("new"), 70000, false)
		s.seal(2)
		s.commit(2)
		if err := <-s.lost; !errors.Is(err, ErrOtherStorage) {
			t.Errorf("blank disks: %v", err)
		}
	}
}

// A crampedStore has room for so many bytes.
type crampedStore struct {
	EpochDir
	room int64
}

func (c *crampedStore) Create(epoch uint64) (EpochFile, error) {
	f, err := c.EpochDir.Create(epoch)
	return &crampedFile{f, c, 0}, err
}

type crampedFile struct {
	EpochFile
	in   *crampedStore
	size int64
}

func (l *crampedFile) WriteAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), max(l.in.room+l.size-off, 0))
	if _, err := l.EpochFile.WriteAt(p[:n], off); err != nil {
		return 0, err
	}
	grown := max(off+n, l.size)
	l.in.room -= grown - l.size
	l.size = grown
	if n < int64(len(p)) {
		return int(n), syscall.ENOSPC
	}
	return int(n), nil
}

func (l *crampedFile) Remove() error {
	l.in.room += l.size
	return l.EpochFile.Remove()
}

// Held writes fill the memory that was thought to be there: the domain's writes
// wait, none fails, none is lost.
func TestHeldWritesHaveNoRoom(t *testing.T) {
	disk := newMemory(1 << 20)
	store := &crampedStore{EpochDir(filepath.Join(t.TempDir(), "xvda")), 100 << 10}
	s := &sharedPair{held: store.EpochDir, model: disk.image()}
	m, err := NewShared(disk, store)
	if err != nil {
		t.Fatal(err)
	}
	s.join(t, m, disk, 1<<30, 0)
	if err := s.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	s.seal(1)
	s.commit(1)
	r := newRand(t)
	wrote := make(chan error, 1)
	go func() {
		for range 60 {
			b := make([]byte, 9000)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			off := r.Int64N(1<<20 - 9000)
			copy(s.model[off:], b)
			if err := s.m.WriteAt(b, off, false); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	full := 0
	for epoch := uint64(2); ; {
		select {
		case err := <-wrote:
			if err != nil {
				t.Fatal(err)
			}
			s.looks(0, 1<<20)
			if full == 0 {
				t.Error("there was room all the time")
			}
			return
		default:
		}
		// As a session does: a gate that is half full has a checkpoint taken.
		if held, limit := s.link.Unacked(); held > limit/2 {
			full++
			s.seal(epoch)
			s.commit(epoch)
			epoch++
		}
	}
}

// Room that was missing for a while is used again in the same session.
func TestRoomComesBack(t *testing.T) {
	const limit = 8 << 20
	disk := newMemory(1 << 20)
	store := &crampedStore{EpochDir(filepath.Join(t.TempDir(), "xvda")), 100 << 10}
	s := &sharedPair{held: store.EpochDir, model: disk.image()}
	m, err := NewShared(disk, store)
	if err != nil {
		t.Fatal(err)
	}
	s.join(t, m, disk, limit, 0)
	if err := s.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	s.seal(1)
	s.commit(1)
	b := make([]byte, 60<<10)
	if err := s.m.WriteAt(b, 0, false); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() { waits <- s.m.WriteAt(b, 0, false) }()
	for shrunk := false; !shrunk; { // the second one does not fit, and waits
		_, most := s.link.Unacked()
		shrunk = most < limit
		runtime.Gosched()
	}
	m.mu.Lock()
	store.room = 1 << 30
	m.mu.Unlock()
	s.seal(2)
	s.commit(2)
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	for epoch := uint64(3); ; epoch++ {
		if _, most := s.link.Unacked(); most == limit {
			break
		} else if epoch > 40 {
			t.Fatalf("after %d epochs %d bytes are held, of %d", epoch, most, limit)
		}
		s.seal(epoch)
		s.commit(epoch)
		if err := s.m.Drain(within(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// Storage that fails stops the domain's writes at the limit, loses nothing, and
// is written to when it works again.
func TestSharedStorageFails(t *testing.T) {
	disk := newMemory(1 << 20)
	s := holding(t, disk, 64<<10)
	disk.setFail(errors.New("path down"))
	b := bytes.Repeat([]byte{7}, 40<<10)
	copy(s.model, b)
	if err := s.m.WriteAt(b, 0, false); err != nil {
		t.Fatal(err)
	}
	s.seal(2)
	s.commit(2)
	wrote := make(chan error, 1)
	go func() { wrote <- s.m.WriteAt(b, 40<<10, false) }()
	for {
		if h := s.m.Holding(); h.Error != "" {
			if !strings.Contains(h.Error, "path down") {
				t.Errorf("error %q", h.Error)
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.looks(0, 40<<10)
	select {
	case err := <-wrote:
		t.Errorf("a write beyond the limit: %v", err)
	default:
	}
	disk.setFail(nil)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	copy(s.model[40<<10:], b)
	s.seal(3)
	s.commit(3)
	if err := s.m.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	s.same("after all", s.model)
}

// A process that was killed inside a write leaves an incomplete record, whose
// write was not answered. A file that is damaged elsewhere is refused.
func TestTornEpochFile(t *testing.T) {
	disk := newMemory(64 << 10)
	s := holding(t, disk, 1<<20)
	for i := range 3 {
		b := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		copy(s.model[i*8192:], b)
		s.m.WriteAt(b, int64(i)*8192, false)
	}
	s.link.Detach()
	s.m.Stop()
	name := filepath.Join(string(s.held), "epoch-2")
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	try := func(b []byte) error {
		t.Helper()
		os.WriteFile(name, b, 0o600)
		m, err := NewShared(disk, s.held)
		if err == nil {
			s.m = m
			s.looks(0, s.m.Size())
			m.Stop()
		}
		return err
	}
	last := len(whole) - 4096 - headerSize
	clear(s.model[16384:])
	for _, cut := range []int{last, last + 1, last + headerSize - 1, last + headerSize, len(whole) - 1} {
		if err := try(whole[:cut]); err != nil {
			t.Errorf("cut at %d of %d: %v", cut, len(whole), err)
		}
	}
	bad := bytes.Clone(whole)
	bad[0] = 99
	if err := try(bad); err == nil {
		t.Error("a damaged file was taken")
	}

	// What the next process writes is shorter than what the first one left, and
	// it is killed too.
	os.WriteFile(name, whole[:len(whole)-1], 0o600)
	m, err := NewShared(disk, s.held)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WriteAt([]byte("short"), 16384, false); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	copy(s.model[16384:], "short")
	again, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := try(again); err != nil {
		t.Errorf("after a second death: %v", err)
	}
	clear(s.model[16384:])
	os.WriteFile(filepath.Join(string(s.held), "other"), nil, 0o600)
	if err := try(whole); err == nil {
		t.Error("a strange file was taken")
	}
	if _, err := os.Stat(filepath.Join(string(s.held), releaseAllFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("marked as free: %v", err)
	}
}

// A release of everything that a killed process had begun is resumed.
func TestReleaseAllIsRemembered(t *testing.T) {
	disk := newMemory(64 << 10)
	s := holding(t, disk, 1<<20)
	copy(s.model, "held")
	s.m.WriteAt([]byte("held"), 0, false)
	disk.setFail(errors.New("path down"))
	s.link.Detach()
	s.m.ReleaseAll()
	s.m.Stop()
	disk.setFail(nil)
	m, err := NewShared(disk, s.held)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.AwaitReleasedAll(within(t)); err != nil {
		t.Fatal(err)
	}
	s.same("after the restart", s.model)
}

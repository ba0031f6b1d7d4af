package diskrepl

import (
	"bytes"
	"errors"
	"sync"
	"time"
)

// memory is a disk in memory.
type memory struct {
	mu     sync.Mutex
	b      []byte
	writes int
	fua    int
	syncs  int
	fail   error         // of every change from now on
	slow   time.Duration // each write takes so long
}

func newMemory(n int) *memory { return &memory{b: make([]byte, n)} }

func (m *memory) Size() int64 { return int64(len(m.b)) }

func (m *memory) ReadAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if copy(p, m.b[off:]) < len(p) {
		return errors.New("beyond the end")
	}
	return nil
}

func (m *memory) WriteAt(p []byte, off int64, fua bool) error {
	time.Sleep(m.slow)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	m.writes++
	if fua {
		m.fua++
	}
	copy(m.b[off:], p)
	return nil
}

func (m *memory) Zero(off, n int64, _, _ bool) error {
	return m.WriteAt(make([]byte, n), off, false)
}

func (m *memory) Trim(off, n int64, fua bool) error { return m.Zero(off, n, false, fua) }

func (m *memory) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	return m.fail
}

// setFail makes every change fail from now on, or ends that.
func (m *memory) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// awaitFlush waits for the one of the first copy, which comes after the one
// before it.
func (m *memory) awaitFlush() {
	for {
		m.mu.Lock()
		n := m.syncs
		m.mu.Unlock()
		if n > 1 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (m *memory) image() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.b)
}

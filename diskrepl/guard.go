package diskrepl

import (
	"fmt"
	"sync"
	"time"
)

// A StableReader is a Device that can also read what its storage has, past any
// cache of this host. After a write-back that failed, the kernel's page cache
// still returns what the storage does not have, and calls it clean.
type StableReader interface {
	// ReadStable fills p from offset off.
	ReadStable(p []byte, off int64) error
	// Forget drops what caches have of a range and the storage has too, or is
	// said to have.
	Forget(off, n int64) error
}

// A guard is the backup's disk as a Replica uses it. A disk that failed once
// stays failed: the kernel reports a write-back that failed a single time, to
// whoever flushes next, and forgets the data.
type guard struct {
	Device

	// flushing excludes a second flush: of two at once the kernel may tell one of
	// them alone that a write-back failed. It has one place, as a lock would, but
	// the clock of a test that uses testing/synctest goes on.
	flushing chan struct{}

	mu     sync.Mutex
	failed error // of the first change or flush that failed
	wrote  bool  // since the newest flush began
}

func newGuard(dev Device) *guard { return &guard{Device: dev, flushing: make(chan struct{}, 1)} }

// readStable reads what the storage has.
func (g *guard) readStable(p []byte, off int64) error {
	if d, ok := g.Device.(StableReader); ok {
		return d.ReadStable(p, off)
	}
	return g.ReadAt(p, off)
}

// forget drops what caches have of a range.
func (g *guard) forget(off, n int64) error {
	if d, ok := g.Device.(StableReader); ok {
		return d.Forget(off, n)
	}
	return nil
}

// err returns the error of the disk's failure.
func (g *guard) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

// change makes a change, unless the disk failed before.
func (g *guard) change(do func() error) error {
	err := g.err()
	if err == nil {
		err = do()
	}
	g.mu.Lock()
	g.wrote = true // a flush that begins from here on has it
	g.mu.Unlock()
	return g.keep(err)
}

// keep records a failure, and returns the first one.
func (g *guard) keep(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		g.failed = err
	}
	return g.failed
}

func (g *guard) WriteAt(p []byte, off int64, fua bool) error {
	return g.change(func() error { return g.Device.WriteAt(p, off, fua) })
}

func (g *guard) Zero(off, n int64, keep, fua bool) error {
	return g.change(func() error { return g.Device.Zero(off, n, keep, fua) })
}

func (g *guard) Trim(off, n int64, fua bool) error {
	return g.change(func() error { return g.Device.Trim(off, n, fua) })
}

func (g *guard) Flush() error {
	g.flushing <- struct{}{}
	defer func() { <-g.flushing }()
	g.mu.Lock()
	err := g.failed
	g.wrote = false
	g.mu.Unlock()
	if err == nil {
		err = g.Device.Flush()
	}
	return g.keep(err)
}

// patrolEvery is the interval at which the disk is looked at.
const patrolEvery = time.Second

// patrolRead is how many bytes a look reads, and patrolStride the distance of
// two reads: the whole disk is visited, and no cache of a drive answers.
const (
	patrolRead   = 4 << 10
	patrolStride = 1021 * ChunkSize
)

// look finds out whether the disk still works: whether it takes what was
// written, or else whether it can be read.
func (g *guard) look(at int64) error {
	g.mu.Lock()
	wrote := g.wrote
	g.mu.Unlock()
	if wrote {
		return g.Flush()
	}
	b := make([]byte, min(patrolRead, g.Size()-at))
	if err := g.readStable(b, at); err != nil {
		return g.keep(fmt.Errorf("read %d bytes at %d: %w", len(b), at, err))
	}
	return nil
}

// patrol looks at the disk again and again until stop is closed, and returns its
// failure: the domain may not flush for hours, and the first to hear of a failed
// disk must not be a takeover.
func (g *guard) patrol(stop <-chan struct{}, every time.Duration) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for at := int64(0); ; at = (at + patrolStride) % max(g.Size()/patrolRead*patrolRead, 1) {
		select {
		case <-stop:
			return nil
		case <-t.C:
		}
		if err := g.look(at); err != nil {
			return fmt.Errorf("diskrepl: the backup's disk: %w", err)
		}
	}
}

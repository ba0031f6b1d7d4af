package diskrepl

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
)

// ErrOtherStorage says that this host and the backup do not see the same
// storage, although both are configured to share it.
var ErrOtherStorage = errors.New("diskrepl: the backup does not read what this host wrote: it is not the same storage")

// probes is how many chunks are compared at the start of a session, to find a
// wrong configuration before anything is written.
const probes = 32

// A sharedSession is the session of a Shared: it verifies that both hosts see
// the same storage, and tells the backup which epochs the storage has.
type sharedSession struct {
	*Link
	s       *Shared
	answers chan []byte // from hashes to probe
}

func (v *sharedSession) sealed(epoch uint64) error { return v.s.seal(epoch) }

func (v *sharedSession) acked(epoch uint64) { v.s.released = max(v.s.released, epoch) }

func (v *sharedSession) unacked() (n, limit int64) { return v.s.unacked(), v.s.room }

func (v *sharedSession) committed(uint64) error {
	return errors.New("diskrepl: COMMITTED of a disk that is shared")
}

func (v *sharedSession) verified(int64, []byte) error {
	return errors.New("diskrepl: VERIFIED of a disk that is shared")
}

func (v *sharedSession) hashes(_ int64, b []byte) error {
	select {
	case v.answers <- b: // probe has used it before it asks again
	case <-v.done:
	}
	return nil
}

// verify compares some chunks with the backup's: the first, the last and random
// ones. Meanwhile the domain writes to the storage directly.
func (v *sharedSession) verify() {
	size := v.s.dev.Size()
	chunks := (size + ChunkSize - 1) / ChunkSize
	for i := range min(probes, chunks) {
		c := rand.Int64N(chunks)
		switch i {
		case 0:
			c = 0
		case 1:
			c = chunks - 1
		}
		off := c * ChunkSize
		span := v.s.lock.Lock(off, ChunkSize)
		err := v.probe(off)
		v.s.lock.Unlock(span)
		if err != nil {
			v.fail(err)
			return
		}
		v.s.mu.Lock()
		v.progress.Compared = v.progress.Total * (i + 1) / min(probes, chunks)
		v.s.mu.Unlock()
	}
	v.synced()
}

// probe compares the chunk at off with the backup's. The chunk must not change
// meanwhile.
func (v *sharedSession) probe(off int64) error {
	b := make([]byte, min(ChunkSize, v.s.dev.Size()-off))
	v.s.mu.Lock()
	v.append(record{typ: recProbe, n: uint32(len(b)), off: uint64(off), epoch: v.epoch}, nil)
	v.cut(0)
	v.s.mu.Unlock()
	if err := v.s.dev.ReadAt(b, off); err != nil {
		return fmt.Errorf("diskrepl: compare with the backup: %w", err)
	}
	want := sha256.Sum256(b)
	select {
	case got := <-v.answers:
		if !bytes.Equal(got, want[:]) {
			return fmt.Errorf("%w (%d bytes at %d differ)", ErrOtherStorage, len(b), off)
		}
		return nil
	case <-v.done:
		return ErrDetached
	}
}

// applied tells the backup that the storage has an epoch. The first epoch of a
// session that has writes is verified: the backup must read them. applied is
// called with the lock held, which it releases while it verifies.
func (v *sharedSession) applied(e *heldEpoch) {
	s := v.s
	if !s.verified && len(e.x) > 0 {
		s.mu.Unlock()
		err := v.probe(e.x[0].off &^ (ChunkSize - 1))
		if err != nil {
			v.fail(err)
		}
		s.mu.Lock()
		s.verified = err == nil
	}
	if s.link == v.Link {
		v.append(record{typ: recApplied, off: e.epoch, epoch: v.epoch}, nil)
	}
}

package diskrepl

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
)

// ChunkSize is the unit of the first copy in bytes. A chunk is sent if its hash
// differs from that of the backup's chunk.
const ChunkSize = 64 << 10

const hashSize = sha256.Size

// A mirrorSession is the session of a Mirror: it makes the first copy, and
// limits what the backup has to hold.
type mirrorSession struct {
	*Link
	m     *Mirror
	id    string
	limit int64 // bytes
	rate  int64 // bytes per second; 0 for no limit
	begun time.Time
	chunk []byte // buffer of the goroutine that makes the first copy

	// sent counts the bytes of the open epoch, and of those before it that the
	// replica holds, each at its number modulo heldEpochs. Guarded by m.mu.
	sent    [heldEpochs]int64
	flushed bool   // the newest record is a FLUSH; guarded by m.mu
	free    uint64 // newest epoch that the replica holds no more; guarded by m.mu

	verify verification
}

// heldEpochs is how many epochs a replica holds at most: one that is being
// committed, one that is sealed, the open one, and one of which the primary does
// not know yet that it is committed.
const heldEpochs = 4

func newMirrorSession(m *Mirror, l *Link, o Options) *mirrorSession {
	return &mirrorSession{Link: l, m: m, id: o.Session, limit: o.Limit, rate: o.Rate, begun: time.Now(), chunk: make([]byte, ChunkSize), verify: verification{known: o.Verify}}
}

// begin starts the first copy: of the chunks that changed since the sync point,
// if they are known, or else by comparing all chunks. It is called with m.mu
// held.
func (s *mirrorSession) begin(p SyncPoint) {
	if bitmap, ok := s.m.dirty.since(p); ok {
		s.progress.Total, s.progress.Known = count(bitmap)*ChunkSize, true
		s.wg.Go(func() { s.resend(bitmap) })
		return
	}
	s.append(record{typ: recCompare, epoch: 1}, nil)
	s.cut(0) // at once: the first copy waits for the hashes
}

// full reports whether a record of n bytes has to wait. It is called with m.mu
// held.
func (s *mirrorSession) full(n int64) bool {
	if s.queued >= queueMax {
		return true
	}
	// Epoch 1 is the first copy, which the replica does not hold back. A record
	// that is larger than the limit is sent if it is the only one.
	held := s.held()
	return s.epoch > 1 && held > 0 && held+n > s.limit
}

// held returns how many bytes the replica may hold. It is called with m.mu held.
func (s *mirrorSession) held() (n int64) {
	for _, sent := range s.sent {
		n += sent
	}
	return n
}

func (s *mirrorSession) sealed(epoch uint64) error {
	if epoch == 1 {
		s.m.dirty.start(s.id, 2)
		s.sent[1] = 0 // the replica does not hold the first copy back
	} else {
		s.m.dirty.seal(epoch)
	}
	return nil
}

func (s *mirrorSession) acked(epoch uint64) {
	s.m.dirty.acked(epoch)
}

// committed frees the room of an epoch.
func (s *mirrorSession) committed(epoch uint64) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if epoch != s.free+1 || epoch >= s.epoch {
		return fmt.Errorf("diskrepl: epoch %d is committed, after %d, while %d is open", epoch, s.free, s.epoch)
	}
	s.free = epoch
	s.sent[epoch%heldEpochs] = 0
	s.m.cond.Broadcast()
	return nil
}

// unacked counts nothing of epoch 1, as full does.
func (s *mirrorSession) unacked() (n, limit int64) {
	if s.epoch == 1 {
		return 0, s.limit
	}
	return s.held(), s.limit
}

// hashes sends the chunks from off on whose hashes differ from the replica's.
func (s *mirrorSession) hashes(off int64, hashes []byte) error {
	total := s.m.dev.Size()
	p := s.Progress()
	if p.Known {
		return errors.New("diskrepl: hashes that nobody asked for")
	}
	if off != p.Compared || len(hashes) == 0 || len(hashes)%hashSize != 0 || p.Synced {
		return fmt.Errorf("diskrepl: %d bytes of hashes from offset %d, expected from %d", len(hashes), off, p.Compared)
	}
	for ; len(hashes) > 0; hashes = hashes[hashSize:] {
		if off >= total {
			return errors.New("diskrepl: hashes beyond the end of the disk")
		}
		n := min(ChunkSize, total-off)
		if err := s.copyChunk(off, n, hashes[:hashSize], off+n); err != nil {
			return err
		}
		off += n
	}
	if off == total {
		s.synced()
	}
	return nil
}

// resend sends the chunks of a bitmap.
func (s *mirrorSession) resend(bitmap []byte) {
	total, compared := s.m.dev.Size(), int64(0)
	for off := int64(0); off < total; off += ChunkSize {
		if c := off / ChunkSize; bitmap[c>>3]&(1<<(c&7)) == 0 {
			continue
		}
		compared += ChunkSize
		if err := s.copyChunk(off, min(ChunkSize, total-off), nil, compared); err != nil {
			s.fail(err)
			return
		}
	}
	s.synced()
}

// copyChunk sends the chunk of n bytes at off, unless it has the given hash.
// The progress is compared bytes afterwards.
func (s *mirrorSession) copyChunk(off, n int64, hash []byte, compared int64) error {
	b := s.chunk[:n]
	// Nobody writes to the chunk from here until it is queued.
	span := s.m.lock.Lock(off, n)
	err := s.m.dev.ReadAt(b, off)
	differs := err == nil
	if differs && hash != nil {
		h := sha256.Sum256(b)
		differs = !bytes.Equal(h[:], hash)
	}
	if differs {
		if bytes.Equal(b, zeroes[:n]) {
			s.m.send(recZero, 0, off, n, nil) // a hole stays one
		} else {
			s.m.send(recWrite, 0, off, n, b)
		}
	}
	s.m.lock.Unlock(span)
	if err != nil {
		return fmt.Errorf("diskrepl: first copy: %w", err)
	}
	if s.rate > 0 {
		due := s.begun.Add(time.Duration(float64(compared) / float64(s.rate) * float64(time.Second)))
		select {
		case <-time.After(time.Until(due)):
		case <-s.done:
			return ErrDetached
		}
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.progress.Compared = compared
	if differs {
		s.progress.Sent += n
	}
	return s.err
}

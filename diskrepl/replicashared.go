package diskrepl

import (
	"crypto/sha256"
	"fmt"
)

// sharedStorage is the part of a Replica that deals with storage which the
// primary writes to as well. The Replica leaves the storage alone until Finish:
// a commit only keeps the epoch, until the primary says that the storage has
// it.
type sharedStorage struct {
	// kept are the committed epochs that the storage may lack, oldest first.
	// Guarded by the Replica's lock.
	kept []keptLog
}

type keptLog struct {
	epoch uint64
	log   *epochLog
}

// Share says that the primary's disk is a [Shared]: both hosts see the same
// storage. Call Share before Run.
func (r *Replica) Share() { r.shared = &sharedStorage{} }

// commit keeps a committed epoch. It is called with the Replica's lock held.
func (s *sharedStorage) commit(epoch uint64, log *epochLog) {
	if epoch > 1 { // the primary held nothing back in the first one
		s.kept = append(s.kept, keptLog{epoch, log})
	}
}

// answerProbe sends the primary the hash of a range of the storage.
func (r *Replica) answerProbe(rec record) error {
	if rec.n > ChunkSize {
		return fmt.Errorf("diskrepl: PROBE of %d bytes, at most %d", rec.n, ChunkSize)
	}
	b := make([]byte, rec.n)
	if err := r.dev.readStable(b, int64(rec.off)); err != nil {
		return &diskError{fmt.Errorf("diskrepl: compare with the primary: %w", err)}
	}
	h := sha256.Sum256(b)
	out := append(record{typ: recHashes, n: hashSize, off: rec.off}.append(nil), h[:]...)
	r.send(out) // on an error the next read fails too
	return nil
}

// applied drops a kept epoch, because the storage has it.
func (r *Replica) applied(epoch uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The primary may know of the ack before the commit is counted here.
	for epoch > r.committed && epoch <= r.sealed && r.err == nil {
		r.cond.Wait()
	}
	if r.err != nil {
		return ErrDetached
	}
	kept := r.shared.kept
	if len(kept) == 0 || kept[0].epoch != epoch {
		return fmt.Errorf("epoch %d, of those up to %d, is not the oldest one here", epoch, r.committed)
	}
	r.drop(kept[0].log)
	r.shared.kept = kept[1:]
	return r.journal.done(epoch)
}

// replay writes kept epochs to the storage. The primary must not be able to
// write to it any more.
func (r *Replica) replay(kept []keptLog) error {
	var x extents
	for _, k := range kept {
		// All of it, before anything is written: the extents read parts of bodies.
		if err := r.spill.verify(k.log); err != nil {
			return err
		}
		for _, l := range k.log.recs {
			x.do(l.record, l.body, l.at)
		}
	}
	load := func(b []byte, at int64) error { return r.spill.get(at, b) }
	if err := x.writeOut(r.dev, load); err != nil {
		return fmt.Errorf("diskrepl: write what the primary may not have written: %w", err)
	}
	return nil
}

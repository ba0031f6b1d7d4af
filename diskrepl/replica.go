package diskrepl

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A Replica is the backup's disk in one session.
//
// Until the first seal it takes the first copy in and is not of one moment:
// whoever keeps its state must know it as inconsistent before Run is called,
// and may know it as consistent after the first commit.
type Replica struct {
	dev  Device
	conn io.ReadWriteCloser
	slab slabs

	memory int64  // bytes of journals in memory, at most, if there is a spill
	spill  *spill // nil: all is held in memory
	shared bool   // the primary writes to dev too

	durable *durableLog // nil: what is held goes with the host

	writing chan struct{} // has room for one: one writer at a time on conn

	mu        sync.Mutex
	cond      sync.Cond
	sealed    uint64    // newest epoch that has come whole
	wanted    uint64    // newest epoch that is to be committed
	committed uint64    // newest epoch that the disk has
	journal   *epochLog // of epoch sealed, if it is not yet being committed
	kept      []keptLog // committed ones that shared storage may not have, oldest first
	bytes     int64     // in journals, in memory
	ended     bool      // nothing more is read
	running   bool      // Run has not returned
	closed    bool      // nothing more is committed
	err       error     // why
	diskErr   error     // the disk failed: nothing is committed any more
}

// NewReplica returns a replica that will write to dev what comes over conn.
func NewReplica(dev Device, conn io.ReadWriteCloser) *Replica {
	r := &Replica{dev: dev, conn: conn, writing: make(chan struct{}, 1)}
	r.cond.L = &r.mu
	return r
}

// Share says that the primary writes to the same storage. The replica then
// leaves it alone until Finish: a commit is only remembered, until the primary
// says that the storage has it. It is called before Run.
func (r *Replica) Share() { r.shared = true }

// SpillTo lets the journal go on in a file of [SpillSize](n) bytes when it has so
// many bytes in memory. It is called before Run.
func (r *Replica) SpillTo(f SpillFile, n, memory int64) {
	r.memory, r.spill = memory, &spill{f: f, size: SpillSize(n)}
}

// epochLog is what an epoch wrote, in order.
type epochLog struct {
	recs    []logged
	slabs   [][]byte
	bytes   int64 // in memory
	spilled int64 // in the file
}

type keptLog struct {
	epoch uint64
	log   *epochLog
}

type logged struct {
	record
	body []byte
	at   int64 // in the file, if body is nil and the record has one
}

// slabs give memory for the bodies of an epoch's records, and take it back
// after the commit.
type slabs struct {
	mu   sync.Mutex
	free [][]byte
	keep int // slabs that the epochs of late have used: new ones would have to be zeroed
}

const slabSize = 1 << 20

// body returns n bytes that live as long as the log.
func (s *slabs) body(log *epochLog, n int) []byte {
	if k := len(log.slabs); k > 0 {
		if last := log.slabs[k-1]; cap(last)-len(last) >= n {
			log.slabs[k-1] = last[:len(last)+n]
			return last[len(last) : len(last)+n : len(last)+n]
		}
	}
	var b []byte
	if n <= slabSize {
		s.mu.Lock()
		if k := len(s.free); k > 0 {
			b, s.free = s.free[k-1], s.free[:k-1]
		}
		s.mu.Unlock()
	}
	if b == nil {
		b = make([]byte, 0, max(n, slabSize))
	}
	log.slabs = append(log.slabs, b[:n])
	return b[:n:n]
}

func (s *slabs) release(log *epochLog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = max(2*len(log.slabs), s.keep-s.keep/8)
	for _, b := range log.slabs {
		if cap(b) == slabSize {
			s.free = append(s.free, b[:0])
		}
	}
	if len(s.free) > s.keep {
		clear(s.free[s.keep:])
		s.free = s.free[:s.keep]
	}
	log.slabs, log.recs = nil, nil
}

// Run takes in what the primary sends until the connection ends, by Finish or
// by itself, and returns why. The primary is told of errors that are not its
// own. Run ends, with an error, when a commit fails.
func (r *Replica) Run() error {
	r.mu.Lock()
	if r.ended {
		defer r.mu.Unlock()
		return r.err
	}
	r.running = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running = false
		r.cond.Broadcast()
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	beside := func(f func() error) func() {
		return func() {
			wg.Go(func() {
				if err := f(); err != nil {
					r.broken(err)
				}
			})
		}
	}
	err := r.receive(beside(r.hash), beside(r.flushSynced))
	var de *diskError
	if errors.As(err, &de) {
		r.broken(err)
	}
	r.end(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// A diskError is one of the backup's own disk.
type diskError struct{ err error }

func (e *diskError) Error() string { return e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

// tellTimeout is how long an earlier word to the primary may stand in the way of
// the last one.
const tellTimeout = time.Second

// broken tells the primary, and ends the session.
func (r *Replica) broken(err error) {
	text := err.Error()
	text = text[:min(len(text), 1024)]
	b := record{typ: recFailed, n: uint32(len(text))}.append(nil)
	select {
	case r.writing <- struct{}{}:
		r.conn.Write(append(b, text...))
		<-r.writing
	case <-time.After(tellTimeout):
		// A primary that takes no hashes takes this neither.
	}
	r.end(err)
}

func (r *Replica) end(err error) {
	r.mu.Lock()
	if !r.ended {
		r.ended, r.err = true, err
	}
	r.cond.Broadcast()
	r.mu.Unlock()
	r.conn.Close()
}

// say tells the primary something, when what was begun before is through.
func (r *Replica) say(b []byte) error {
	r.writing <- struct{}{}
	defer func() { <-r.writing }()
	_, err := r.conn.Write(b)
	return err
}

// hash tells the primary what this disk has.
func (r *Replica) hash() error {
	const perRecord = 128
	size := r.dev.Size()
	chunk := make([]byte, ChunkSize)
	out := make([]byte, 0, headerSize+perRecord*hashSize)
	for off := int64(0); off < size; {
		from := off
		out = out[:headerSize]
		for range perRecord {
			if off == size {
				break
			}
			b := chunk[:min(ChunkSize, size-off)]
			if err := r.dev.ReadAt(b, off); err != nil {
				return fmt.Errorf("diskrepl: first copy: %w", err)
			}
			h := sha256.Sum256(b)
			out = append(out, h[:]...)
			off += int64(len(b))
		}
		record{typ: recHashes, n: uint32(len(out) - headerSize), off: uint64(from)}.append(out[:0])
		if r.say(out) != nil {
			return nil // the reader finds out why
		}
	}
	return nil
}

// flushSynced makes what the first copy has written durable, early: while the
// memory is copied there is time for that, and none when the first epoch is there.
func (r *Replica) flushSynced() error {
	if r.shared {
		return nil
	}
	if err := r.dev.Flush(); err != nil {
		return fmt.Errorf("diskrepl: flush the first copy: %w", err)
	}
	return nil
}

// receive reads the stream to its end; compare is called when the primary asks
// for hashes, synced when the first copy is here.
func (r *Replica) receive(compare, synced func()) error {
	d := newReader(r.conn, tlsRecord)
	size := r.dev.Size()
	log, direct, isSynced, compared := new(epochLog), !r.shared, false, false
	epoch := uint64(1)
	var scratch []byte
	spilled := false // the last body is in scratch
	get := func(n int) []byte {
		if spilled = !direct && n > 0 && r.full(n); spilled {
			if cap(scratch) < n {
				scratch = make([]byte, n)
			}
			return scratch[:n]
		}
		return r.slab.body(log, n)
	}
	for {
		at := d.off
		spilled = false
		rec, body, err := d.next(get)
		if err != nil {
			return err
		}
		bad := func(format string, args ...any) error {
			return &StreamError{at, rec.typ.String(), fmt.Errorf(format, args...)}
		}
		if rec.epoch != epoch {
			return bad("of epoch %d inside epoch %d", rec.epoch, epoch)
		}
		switch rec.typ {
		case recWrite, recZero, recTrim, recProbe:
			if !rec.fits(size) {
				return bad("range %d+%d of a disk of %d bytes", rec.off, rec.n, size)
			}
		case recFlush:
		case recCompare:
			if compared || isSynced || r.shared {
				return bad("out of its place")
			}
			compared = true
			compare()
			continue
		case recSynced:
			if !isSynced {
				synced()
			}
			isSynced = true
			continue
		case recSeal:
			want, err := parseSum(body)
			if err != nil {
				return bad("%w", err)
			}
			if want != d.sum {
				return bad("%d records with CRC-32C %08x came, %d with %08x were sent", d.sum.records, d.sum.crc, want.records, want.crc)
			}
			if !isSynced {
				return bad("before SYNCED")
			}
			d.sum = sum{}
			if epoch > 1 && r.durable != nil {
				l, err := r.durable.seal(epoch)
				if err != nil {
					return &diskError{err}
				}
				r.mu.Lock()
				err = r.durable.keep(epoch, l)
				r.mu.Unlock()
				if err != nil {
					return &diskError{fmt.Errorf("diskrepl: durable journal: %w", err)}
				}
			}
			if err := r.seal(epoch, log); err != nil {
				return err
			}
			log, direct = new(epochLog), false
			epoch++
			continue
		case recApplied:
			if !r.shared {
				return bad("of a disk that is not shared")
			}
			if err := r.applied(rec.off); err != nil {
				return bad("%w", err)
			}
			continue
		default:
			return bad("not for a replica")
		}
		if rec.typ == recProbe {
			if !r.shared {
				return bad("of a disk that is not shared")
			}
			if err := r.answer(rec); err != nil {
				return err
			}
			continue
		}
		if direct {
			if err := r.apply(rec, body); err != nil {
				return err
			}
			r.slab.release(log)
			continue
		}
		if r.durable != nil {
			if err := r.durable.add(rec, body); err != nil {
				return &diskError{err}
			}
		}
		l, held := logged{record: rec, body: body}, headerSize+int64(len(body))
		if spilled {
			if l.at, err = r.place(len(body)); err == nil {
				err = r.spill.put(l.at, body)
			}
			if err != nil {
				return &diskError{err}
			}
			l.body, held = nil, headerSize
			log.spilled += int64(len(body))
		}
		log.recs = append(log.recs, l)
		log.bytes += held
		r.mu.Lock()
		r.bytes += held
		r.mu.Unlock()
	}
}

// answer tells the primary the hash of a range of shared storage.
func (r *Replica) answer(rec record) error {
	if rec.n > ChunkSize {
		return fmt.Errorf("diskrepl: PROBE of %d bytes, at most %d", rec.n, ChunkSize)
	}
	b := make([]byte, rec.n)
	if err := r.dev.ReadAt(b, int64(rec.off)); err != nil {
		return &diskError{fmt.Errorf("diskrepl: compare with the primary: %w", err)}
	}
	h := sha256.Sum256(b)
	out := append(record{typ: recHashes, n: hashSize, off: rec.off}.append(nil), h[:]...)
	r.say(out) // the reader finds out of an error
	return nil
}

// applied forgets an epoch that the storage has.
func (r *Replica) applied(epoch uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The primary may hear of the ack before the commit is counted here.
	for epoch > r.committed && epoch <= r.sealed && !r.ended {
		r.cond.Wait()
	}
	if r.ended {
		return ErrDetached
	}
	if len(r.kept) == 0 || r.kept[0].epoch != epoch {
		return fmt.Errorf("epoch %d, of those up to %d, is not the oldest one here", epoch, r.committed)
	}
	r.forget(r.kept[0].log)
	r.kept = r.kept[1:]
	return r.durable.done(epoch)
}

// forget frees what a log has. It is called with the lock.
func (r *Replica) forget(log *epochLog) {
	r.slab.release(log)
	r.bytes -= log.bytes
	if r.spill != nil {
		r.spill.head += log.spilled
	}
}

// full reports whether a body of n bytes is to go to the file.
func (r *Replica) full(n int) bool {
	if r.spill == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes+int64(n) > r.memory
}

// place returns where n bytes go in the file.
func (r *Replica) place(n int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.spill
	if s.tail-s.head+int64(n) > s.size {
		return 0, fmt.Errorf("diskrepl: the journal is full: %d bytes in memory, %d in the file", r.bytes, s.tail-s.head)
	}
	at := s.tail
	s.tail += int64(n)
	return at, nil
}

// seal makes an epoch known as whole, once the one before it is being
// committed: so two at most are held.
func (r *Replica) seal(epoch uint64, log *epochLog) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.journal != nil && !r.ended {
		r.cond.Wait()
	}
	if r.ended {
		return r.err
	}
	r.sealed, r.journal = epoch, log
	r.cond.Broadcast()
	return nil
}

// AwaitSealed waits until an epoch has come whole. It fails if none will.
func (r *Replica) AwaitSealed(ctx context.Context, epoch uint64) error {
	defer r.wakeOn(ctx)()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.sealed < epoch && !r.ended && ctx.Err() == nil {
		r.cond.Wait()
	}
	switch {
	case r.sealed >= epoch:
		return nil
	case r.ended:
		return r.err
	}
	return ctx.Err()
}

func (r *Replica) wakeOn(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cond.Broadcast()
	})
}

// Commit gives the disk the writes of a sealed epoch, unless it has them. It
// returns when the disk has taken them; a later flush makes them durable. Epochs
// are committed in order, each once; a crash in the middle leaves a disk as one
// is left whose own power failed, because no write overtakes a flush that the
// domain asked for.
func (r *Replica) Commit(epoch uint64) error {
	r.mu.Lock()
	log, err := r.take(epoch)
	r.mu.Unlock()
	if log == nil {
		return err
	}

	err = r.applyAll(log)
	if err == nil && r.durable != nil {
		err = r.dev.Flush()
	}
	r.mu.Lock()
	if err == nil {
		err = r.durable.done(epoch)
	}
	r.forget(log)
	if err == nil {
		r.committed = epoch
	} else {
		r.diskErr = fmt.Errorf("commit of epoch %d: %w", epoch, err)
		err = r.diskErr
	}
	r.cond.Broadcast()
	r.mu.Unlock()
	if err != nil {
		r.broken(err)
	}
	return err
}

// take begins with a commit. It returns nothing if there is nothing left to do.
// It is called with the lock, which it gives up while it waits.
func (r *Replica) take(epoch uint64) (*epochLog, error) {
	// One at a time; the same one may be asked for by two, at the session's end.
	for r.committed < r.wanted && r.diskErr == nil && !r.closed {
		r.cond.Wait()
	}
	switch {
	case r.diskErr != nil:
		return nil, r.diskErr
	case r.committed == epoch:
		return nil, nil
	case r.closed:
		return nil, ErrDetached
	case epoch != r.sealed || r.journal == nil:
		return nil, fmt.Errorf("diskrepl: commit of epoch %d, sealed is %d, committed %d", epoch, r.sealed, r.committed)
	}
	log := r.journal
	r.journal, r.wanted = nil, epoch
	r.cond.Broadcast()
	if r.shared {
		if epoch > 1 { // the first one holds nothing back
			r.kept = append(r.kept, keptLog{epoch, log})
		}
		r.committed = epoch
		return nil, nil
	}
	return log, nil
}

func (r *Replica) applyAll(log *epochLog) error {
	var scratch []byte
	for _, l := range log.recs {
		if l.body == nil && l.typ.hasBody() && l.n > 0 {
			if cap(scratch) < int(l.n) {
				scratch = make([]byte, l.n)
			}
			l.body = scratch[:l.n]
			if err := r.spill.get(l.at, l.body); err != nil {
				return err
			}
		}
		if err := r.apply(l.record, l.body); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replica) apply(rec record, body []byte) error {
	var err error
	off, n, fua := int64(rec.off), int64(rec.n), rec.flags&flagFUA != 0
	switch rec.typ {
	case recWrite:
		err = r.dev.WriteAt(body, off, fua)
	case recZero:
		err = r.dev.Zero(off, n, rec.flags&flagKeep != 0, fua)
	case recTrim:
		err = r.dev.Trim(off, n, fua)
	case recFlush:
		err = r.dev.Flush()
	}
	if err != nil {
		return &diskError{fmt.Errorf("diskrepl: %v at %d of the backup's disk: %w", rec.typ, rec.off, err)}
	}
	return nil
}

// Finish ends the session: it waits for the commit of an epoch, which has been
// or will be asked for, forgets what came after and makes the disk durable.
func (r *Replica) Finish(epoch uint64) error {
	r.end(ErrDetached)
	r.mu.Lock()
	for (r.committed < epoch || r.running) && r.diskErr == nil && !r.closed {
		r.cond.Wait()
	}
	err := r.diskErr
	if err == nil && r.committed < epoch {
		err = ErrDetached
	}
	kept := r.kept
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if r.shared {
		err = r.replay(kept)
	} else if err = r.dev.Flush(); err != nil {
		err = fmt.Errorf("diskrepl: flush at the end: %w", err)
	}
	return err
}

// replay gives shared storage what the primary may not have written to it. The
// primary must not be able to any more.
func (r *Replica) replay(kept []keptLog) error {
	var x extents
	for _, k := range kept {
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

// Close ends the session, once a commit that is under way is done. The disk
// stays at the newest committed epoch, and is not touched any more.
func (r *Replica) Close() {
	r.end(ErrDetached)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.cond.Broadcast()
	for r.running || r.committed < r.wanted && r.diskErr == nil {
		r.cond.Wait()
	}
	r.durable.end()
	r.durable = nil
}

// Committed returns the newest epoch that the disk has, exactly; false if the
// disk failed, or is not of one moment. After Close it does not change.
func (r *Replica) Committed() (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.committed, r.committed > 0 && r.diskErr == nil && !r.shared
}

// ReplicaStatus is what a Replica is at.
type ReplicaStatus struct {
	Sealed    uint64 `json:"sealed"`
	Committed uint64 `json:"committed"`
	Journal   int64  `json:"journal"` // bytes held back in memory
	Spilled   int64  `json:"spilled"` // and in the file
}

// Status returns what is so now.
func (r *Replica) Status() ReplicaStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := ReplicaStatus{Sealed: r.sealed, Committed: r.committed, Journal: r.bytes}
	if r.spill != nil {
		st.Spilled = r.spill.tail - r.spill.head
	}
	return st
}

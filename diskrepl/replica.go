package diskrepl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A Replica is the backup's side of a Mirror's or a Shared's session: it holds
// the writes of each epoch back until the epoch is committed.
//
// While the first copy of a Mirror is under way, the disk is inconsistent.
// Record it as such before Run, and as consistent only after the first commit.
type Replica struct {
	dev    *guard
	conn   io.ReadWriteCloser
	slab   slabs
	memory int64          // bytes held in memory, at most, if there is a spill
	limit  int64          // bytes held in memory and in spill, at most; 0 is no limit
	spill  *spill         // nil: everything is held in memory
	shared *sharedStorage // nil: dev is a copy, which the primary does not write to

	writing chan struct{} // has one place: one writer at a time on conn
	every   time.Duration // between two looks at the disk
	copyAll bool          // the first copy is of all chunks
	compare func() error  // called before the disk is compared as a whole; may be nil

	mu        sync.Mutex
	cond      sync.Cond
	sealed    uint64    // newest epoch that is here, whole
	wanted    uint64    // newest epoch whose commit has begun
	committed uint64    // newest epoch that is committed
	pending   *epochLog // of epoch sealed, until its commit begins
	bytes     int64     // held in memory
	running   bool      // Run has not returned
	closed    bool      // Close was called: nothing more is committed
	err       error     // why nothing more is read; nil while the session lasts
	diskErr   error     // the disk failed: nothing more is committed
	torn      error     // why a commit ended in the middle

	// loose says that the disk was given something that stable storage may not
	// have. Commits alone use it, one at a time.
	loose bool

	// journal is nil if what is held need not outlive this host. Close sets it
	// to nil. Its own comments say which lock guards which part.
	journal *journal
}

// NewReplica returns a Replica that writes to dev what a Link sends over conn.
// It closes conn at the end of the session.
func NewReplica(dev Device, conn io.ReadWriteCloser) *Replica {
	r := &Replica{dev: newGuard(dev), conn: conn, writing: make(chan struct{}, 1), every: patrolEvery, loose: true}
	r.cond.L = &r.mu
	return r
}

// SpillTo limits the memory for writes that are held back, in bytes. What
// exceeds it goes to f, which has [SpillSize](n) bytes. Call SpillTo before
// Run.
func (r *Replica) SpillTo(f SpillFile, n, memory int64) {
	r.memory, r.spill = memory, &spill{f: f, size: SpillSize(n)}
}

// Limit says how many bytes the primary was told that it may have held back here:
// in memory, and in the file of SpillTo. More than that, and one record, ends the
// session with an error. Shared storage has no limit here: its primary counts what is
// not acknowledged, and a Replica holds more. Call Limit before Run.
func (r *Replica) Limit(n int64) { r.limit = n }

// CopyAll makes the first copy one of all chunks, though they may be equal, and
// verifies that the storage has them: the disk failed in an earlier session, and
// neither what can be read from it nor a flush that succeeds proves anything. Call CopyAll before Run, and offer the Link no SyncPoint.
func (r *Replica) CopyAll() { r.copyAll = true }

// OnCompare has f called before anything is written if the primary does not know
// what changed since the SyncPoint that it was offered: from there on the disk is not
// that of the SyncPoint with known changes. An error of f ends the session. Call
// OnCompare before Run.
func (r *Replica) OnCompare(f func() error) { r.compare = f }

// Run receives what the primary sends until the session ends, and returns why
// it ended: after Finish or Close, [ErrDetached]; if the connection broke, an
// error that wraps [ErrLost]; if the stream is damaged, a [StreamError]; or an
// error of the backup's disk, which is sent to the primary too. A commit that
// fails ends the session, and so does a disk that fails at another time: Run has
// it flush what it was given every second.
func (r *Replica) Run() error {
	r.mu.Lock()
	if r.err != nil {
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
	stop := make(chan struct{})
	defer close(stop)
	wg.Go(func() {
		if err := r.dev.patrol(stop, r.every); err != nil {
			r.diskFailed(err)
			r.fail(err)
		}
	})
	err := newIntake(r, func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				r.fail(err)
			}
		})
	}).run()
	var de *diskError
	if errors.As(err, &de) {
		r.fail(err)
	}
	r.end(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// A diskError is an error of the backup's own disk or journal.
type diskError struct{ err error }

func (e *diskError) Error() string { return e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

// diskFailed ends all commits.
func (r *Replica) diskFailed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.diskErr == nil {
		r.diskErr = err
	}
	r.cond.Broadcast()
}

// Failed returns why the copy can't be trusted: its disk failed, or a commit
// ended in the middle. It returns nil if neither happened.
func (r *Replica) Failed() error {
	if err := r.dev.err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.torn
}

// Flush makes what was committed durable.
func (r *Replica) Flush() error { return r.dev.Flush() }

// reportTimeout bounds how long an earlier record on its way to the primary may
// delay the report of a failure.
const reportTimeout = time.Second

// fail reports an error of this side to the primary, and ends the session.
func (r *Replica) fail(err error) {
	text := err.Error()
	text = text[:min(len(text), 1024)]
	b := record{typ: recFailed, n: uint32(len(text))}.append(nil)
	select {
	case r.writing <- struct{}{}:
		r.conn.Write(append(b, text...))
		<-r.writing
	case <-time.After(reportTimeout):
		// A primary that does not read the hashes does not read this either.
	}
	r.end(err)
}

// end ends the session. The first error is the reason.
func (r *Replica) end(err error) {
	r.mu.Lock()
	if r.err == nil {
		r.err = err
	}
	r.cond.Broadcast()
	r.mu.Unlock()
	r.conn.Close()
}

// send sends records to the primary, after those that are on their way.
func (r *Replica) send(b []byte) error {
	r.writing <- struct{}{}
	defer func() { <-r.writing }()
	_, err := r.conn.Write(b)
	return err
}

// drop frees the memory, and the part of the spill file, of a log. It is called
// with the lock held.
func (r *Replica) drop(log *epochLog) {
	r.slab.release(log)
	r.bytes -= log.bytes
	if r.spill != nil {
		r.spill.head += log.spilled
	}
}

// full reports whether a body of n bytes has to go to the spill file.
func (r *Replica) full(n int) bool {
	if r.spill == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes+int64(n) > r.memory
}

// place reserves n bytes of the spill file and returns where they are. It fails
// if the file is full.
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

// seal makes an epoch known as sealed. It waits until the commit of the epoch
// before has begun, so that two epochs at most are held.
func (r *Replica) seal(epoch uint64, log *epochLog) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.pending != nil && r.err == nil {
		r.cond.Wait()
	}
	if r.err != nil {
		return r.err
	}
	r.sealed, r.pending = epoch, log
	r.cond.Broadcast()
	return nil
}

// AwaitSealed waits until an epoch is sealed: all of it is here, and on stable
// storage if [Replica.Durable] was called. It returns an error if the session
// ends before, or that of ctx.
func (r *Replica) AwaitSealed(ctx context.Context, epoch uint64) error {
	defer r.wakeOn(ctx)()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.sealed < epoch && r.err == nil && ctx.Err() == nil {
		r.cond.Wait()
	}
	switch {
	case r.sealed >= epoch:
		return nil
	case r.err != nil:
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

// Finish ends the session and makes the disk ready for the domain: it waits for
// the commit of an epoch, which the caller has begun or will begin, discards
// all later writes and flushes the disk. On shared storage it first writes what
// the primary may not have written; the primary must not be able to write any
// more. It returns the disk's error if a commit failed, and [ErrDetached] after
// Close.
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
	var kept []keptLog
	if r.shared != nil {
		kept = r.shared.kept
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if r.shared != nil {
		return r.replay(kept)
	}
	if err := r.dev.Flush(); err != nil {
		return fmt.Errorf("diskrepl: flush at the end: %w", err)
	}
	return nil
}

// Close ends the session, after a commit that is in progress. The disk stays at
// the newest committed epoch, and the Replica does not touch it any more.
func (r *Replica) Close() {
	r.end(ErrDetached)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.cond.Broadcast()
	for r.running || r.committed < r.wanted && r.diskErr == nil {
		r.cond.Wait()
	}
	r.journal.close()
	r.journal = nil
}

// Committed returns the epoch that the disk is consistent as of. It returns
// false if the disk is inconsistent: no epoch is committed, the disk failed, or
// it is shared storage. After Close the result does not change.
func (r *Replica) Committed() (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.committed, r.committed > 0 && r.diskErr == nil && r.dev.err() == nil && r.shared == nil
}

// ReplicaStatus is the progress of a Replica.
type ReplicaStatus struct {
	Sealed    uint64 `json:"sealed"`    // newest sealed epoch
	Committed uint64 `json:"committed"` // newest committed epoch
	Journal   int64  `json:"journal"`   // bytes held back in memory
	Spilled   int64  `json:"spilled"`   // bytes held back in the spill file
}

// Status returns a snapshot.
func (r *Replica) Status() ReplicaStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := ReplicaStatus{Sealed: r.sealed, Committed: r.committed, Journal: r.bytes}
	if r.spill != nil {
		st.Spilled = r.spill.tail - r.spill.head
	}
	return st
}

package diskrepl

import "fmt"

// Commit writes a sealed epoch to the disk. It returns when the writes have
// completed; a later flush makes them durable. Commit epochs in order. A second
// commit of the same epoch waits for the first and does nothing.
//
// If this host crashes during a commit, the disk is as a disk whose power
// failed: no write overtakes a flush that the domain asked for.
func (r *Replica) Commit(epoch uint64) error {
	r.mu.Lock()
	log, err := r.take(epoch)
	r.mu.Unlock()
	if log == nil {
		return err
	}

	var torn error
	err = r.complete(epoch)
	if err == nil && r.shared == nil {
		torn = r.write(log)
		err = torn
	}
	r.mu.Lock()
	r.torn = torn
	switch {
	case r.shared == nil:
		if err == nil {
			err = r.journal.done(epoch)
		}
		r.drop(log)
	case err == nil:
		r.shared.commit(epoch, log)
	}
	if err == nil {
		r.committed = epoch
	} else {
		err = fmt.Errorf("commit of epoch %d: %w", epoch, err)
		if r.diskErr == nil {
			r.diskErr = err
		}
	}
	r.cond.Broadcast()
	r.mu.Unlock()
	if err != nil {
		r.fail(err)
	} else if r.shared == nil {
		r.send(record{typ: recCommitted, off: epoch}.append(nil)) // on an error the next read fails too
	}
	return err
}

// take begins a commit, and returns the log of the epoch, or nil if it was
// committed or can't be. It is called with the lock held, which it releases
// while it waits.
func (r *Replica) take(epoch uint64) (*epochLog, error) {
	// Commits run one at a time. At the end of a session two callers may commit
	// the same epoch.
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
	case epoch != r.sealed || r.pending == nil:
		return nil, fmt.Errorf("diskrepl: commit of epoch %d, sealed is %d, committed %d", epoch, r.sealed, r.committed)
	}
	log := r.pending
	r.pending, r.wanted = nil, epoch
	r.cond.Broadcast()
	return log, nil
}

// write writes an epoch to the disk; with a journal, to its stable storage.
func (r *Replica) write(log *epochLog) error {
	err := r.commitAll(log, r.journal == nil)
	switch {
	case err != nil:
		return err
	case r.journal != nil:
		return r.dev.Flush()
	}
	return r.dev.err() // what was written earlier may be lost
}

// A commitRun is the part of a commit between two barriers, or less: writes that
// reach the disk in any order, many at once. What a later one of them overwrites is
// not written.
type commitRun struct {
	r       *Replica
	ordered bool
	hands   *hands
	x       extents
	body    []byte // memory for bodies from the spill file, of which used bytes are in x
	used    int
}

// A run is written out when it has so much, barrier or not.
const (
	runExtents = 1 << 10 // one is put between others, which takes longer the more there are
	runBodies  = 4 << 20 // bytes from the spill file
)

// commitAll writes a log to the disk. ordered says that no write may overtake a
// barrier: what a crash leaves of an epoch is to be a disk whose power failed. A
// journal repairs whatever it leaves, and a first copy is no copy yet.
func (r *Replica) commitAll(log *epochLog, ordered bool) error {
	run := &commitRun{r: r, ordered: ordered, hands: newHands()}
	defer run.hands.end()
	for _, l := range log.recs {
		if err := run.add(l); err != nil {
			return err
		}
	}
	return run.write()
}

// add adds a record. Before it adds one that must come after those that it has, it
// writes them.
func (c *commitRun) add(l logged) error {
	switch l.typ {
	case recVerify:
		if err := c.write(); err != nil {
			return err
		}
		c.r.answerVerify(l.record)
		return nil
	case recFlush:
		return c.barrier()
	}
	if l.spilled() {
		var err error
		if l.body, err = c.load(l); err != nil {
			return err
		}
	}
	e := l.extent(l.body, 0)
	e.fua = l.flags&flagFUA != 0 && c.ordered
	c.x.put(e)
	// What comes after a write with FUA may depend on it.
	if e.fua || len(c.x) >= runExtents {
		return c.write()
	}
	return nil
}

// load returns a body from the spill file, which is valid until the run is
// written.
func (c *commitRun) load(l logged) ([]byte, error) {
	n := int(l.n)
	if c.used+n > runBodies {
		if err := c.write(); err != nil {
			return nil, err
		}
	}
	if len(c.body) < n {
		c.body = make([]byte, max(n, runBodies))
	}
	b := c.body[c.used : c.used+n]
	c.used += n
	return b, c.r.spill.load(l, b)
}

// barrier writes what there is, and has it on stable storage before anything that
// is added later.
func (c *commitRun) barrier() error {
	r := c.r
	if !c.ordered {
		return nil
	}
	if !r.loose && len(c.x) > 0 && c.x[0].typ == recWrite && c.x.joined() == len(c.x) {
		// One write with FUA, in place of a write and a flush of the whole disk.
		c.x[0].fua = true
		return c.write()
	}
	if err := c.write(); err != nil || !r.loose {
		return err
	}
	if err := r.dev.Flush(); err != nil {
		return failedAt(fmt.Errorf("%v: %w", recFlush, err))
	}
	r.loose = false
	return nil
}

// write writes what there is.
func (c *commitRun) write() error {
	for left := c.x; len(left) > 0 && !c.r.loose; {
		n := left.joined()
		c.r.loose = c.r.loose || !left[:n].fua()
		left = left[n:]
	}
	if err := c.x.writeAll(c.r.dev, nil, c.hands); err != nil {
		return failedAt(err)
	}
	c.x, c.used = c.x[:0], 0
	return nil
}

// A copyWriter writes the records of a first copy as a commit does, while more of
// them arrive.
type copyWriter struct {
	r     *Replica
	start func(func() error)
	bytes int        // of bodies that are gathered, and not being written
	busy  bool       // a goroutine writes, or has written since
	idle  chan error // has room for one: from the goroutine, when it has written
}

// copyBatch is how many bytes are gathered while others are being written.
const copyBatch = 4 << 20

// add adds a record to a log. If nothing is being written it has the log written, and
// returns a new one.
func (c *copyWriter) add(log *epochLog, l logged) (*epochLog, error) {
	log.recs = append(log.recs, l)
	c.bytes += heldSize + len(l.body)
	return c.next(log, c.bytes >= copyBatch)
}

// end has a log written, and returns when all is.
func (c *copyWriter) end(log *epochLog) (*epochLog, error) {
	log, err := c.next(log, true)
	if err == nil {
		log, err = c.next(log, true) // waits for that one
	}
	return log, err
}

// next has a log written as soon as the one before it is, and returns a new log. It
// returns the same one if the one before is still being written, unless wait is set.
func (c *copyWriter) next(log *epochLog, wait bool) (*epochLog, error) {
	if c.busy {
		if !wait && len(c.idle) == 0 {
			return log, nil
		}
		err := <-c.idle
		if c.busy = false; err != nil {
			return log, err
		}
	}
	if len(log.recs) == 0 {
		return log, nil
	}
	c.busy, c.bytes = true, 0
	c.start(func() error {
		err := c.r.commitAll(log, false)
		c.r.slab.release(log)
		c.idle <- err
		return err
	})
	return new(epochLog), nil
}

// failedAt is the error of a change that the backup's disk did not make.
func failedAt(err error) error {
	return &diskError{fmt.Errorf("diskrepl: the backup's disk: %w", err)}
}

// apply does to the disk what a record says: of a journal that is replayed, or of a
// first copy that is read back.
func (r *Replica) apply(rec record, body []byte) error {
	var err error
	off, n, fua := int64(rec.off), int64(rec.n), rec.flags&flagFUA != 0
	if r.journal != nil {
		if fua = false; rec.typ == recFlush { // as commitRun does
			return nil
		}
	}
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
		return failedAt(fmt.Errorf("%v at %d: %w", rec.typ, rec.off, err))
	}
	return nil
}

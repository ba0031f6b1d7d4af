package diskrepl

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
)

// An intake reads the stream of a session into a Replica.
type intake struct {
	r    *Replica
	d    *reader
	size int64 // of the disk in bytes
	// start runs f on a goroutine of its own. An error of f ends the session.
	start func(f func() error)

	epoch    uint64    // the open one
	log      *epochLog // of the open epoch
	direct   bool      // writes go to the disk at once: the first copy
	synced   bool      // SYNCED has come
	compared bool      // COMPARE has come

	back *readBack   // of the first copy, if it has to be verified
	copy *copyWriter // of the first copy, if not

	scratch []byte
	spilled bool // the body of the current record is in scratch, and goes to the spill file
}

func newIntake(r *Replica, start func(func() error)) *intake {
	in := &intake{r: r, d: newReader(r.conn, tlsRecord), size: r.dev.Size(), start: start, epoch: 1, log: new(epochLog), direct: r.shared == nil}
	if r.copyAll {
		in.back = &readBack{r: r, log: in.log}
	} else {
		in.copy = &copyWriter{r: r, start: start, idle: make(chan error, 1)}
	}
	return in
}

// body returns memory for the body of the next record.
func (in *intake) body(n int) []byte {
	if in.spilled = !in.direct && n > 0 && in.r.full(n); in.spilled {
		if cap(in.scratch) < n {
			in.scratch = make([]byte, n)
		}
		return in.scratch[:n]
	}
	return in.r.slab.body(in.log, n)
}

// run reads records until the stream ends.
func (in *intake) run() error {
	body := in.body
	for {
		at := in.d.off
		in.spilled = false
		rec, b, err := in.d.next(body)
		if err != nil {
			return err
		}
		if err := in.take(rec, b); err != nil {
			var bad *misplaced
			if errors.As(err, &bad) {
				return &StreamError{at, rec.typ.String(), bad.err}
			}
			return err
		}
	}
}

// misplaced is the error of a record that must not come here, or not now.
type misplaced struct{ err error }

func (e *misplaced) Error() string { return e.err.Error() }

func bad(format string, args ...any) error { return &misplaced{fmt.Errorf(format, args...)} }

// take does what a record asks for.
func (in *intake) take(rec record, body []byte) error {
	r := in.r
	if rec.epoch != in.epoch {
		return bad("of epoch %d inside epoch %d", rec.epoch, in.epoch)
	}
	switch rec.typ {
	case recWrite, recZero, recTrim, recProbe, recVerify:
		if !rec.fits(in.size) {
			return bad("range %d+%d of a disk of %d bytes", rec.off, rec.n, in.size)
		}
	}
	switch rec.typ {
	case recWrite, recZero, recTrim, recFlush:
		return in.change(rec, body)
	case recVerify:
		if in.direct || r.shared != nil || rec.n == 0 || rec.n > ChunkSize {
			return bad("of %d bytes out of its place", rec.n)
		}
		return in.hold(logged{record: rec})
	case recSynced:
		if err := in.copied(); err != nil {
			return err
		}
		if !in.synced && r.shared == nil {
			in.start(r.flushFirstCopy)
		}
		in.synced = true
		return nil
	case recSeal:
		return in.seal(body)
	case recCompare:
		if in.compared || in.synced || r.shared != nil {
			return bad("out of its place")
		}
		in.compared = true
		if r.compare != nil {
			if err := r.compare(); err != nil {
				return &diskError{err}
			}
		}
		in.start(r.sendHashes)
		return nil
	case recProbe:
		if r.shared == nil {
			return bad("of a disk that is not shared")
		}
		return r.answerProbe(rec)
	case recApplied:
		if r.shared == nil {
			return bad("of a disk that is not shared")
		}
		if err := r.applied(rec.off); err != nil {
			return bad("%w", err)
		}
		return nil
	}
	return bad("not for a replica")
}

// change applies a record of the first copy, and adds all others to the log of
// the open epoch.
func (in *intake) change(rec record, body []byte) error {
	r := in.r
	if in.direct {
		return in.copyOne(rec, body)
	}
	if r.journal != nil {
		if err := r.journal.add(rec, body); err != nil {
			return &diskError{err}
		}
	}
	l := logged{record: rec, body: body}
	if in.spilled {
		var err error
		if l.at, err = r.place(len(body)); err == nil {
			err = r.spill.put(l.at, body)
		}
		if err != nil {
			return &diskError{err}
		}
		l.body, l.crc = nil, crc32.Checksum(body, castagnoli)
		in.log.spilled += int64(len(body))
	}
	return in.hold(l)
}

// copyOne writes a record of the first copy, at once or soon.
func (in *intake) copyOne(rec record, body []byte) error {
	if in.back == nil {
		var err error
		in.log, err = in.copy.add(in.log, logged{record: rec, body: body})
		return err
	}
	if err := in.r.apply(rec, body); err != nil {
		return err
	}
	return in.back.add(rec, body)
}

// copied returns when all records of the first copy that came are written, and
// verified if they have to be.
func (in *intake) copied() (err error) {
	switch {
	case in.back != nil:
		err = in.back.verify()
	case in.direct:
		in.log, err = in.copy.end(in.log)
	}
	return err
}

// hold adds a record to the log of the open epoch. A primary that sends more than
// it was told it may is refused: it would fill this host's memory.
func (in *intake) hold(l logged) error {
	r, n := in.r, heldSize+int64(len(l.body))
	in.log.recs = append(in.log.recs, l)
	in.log.bytes += n
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes += n
	held := r.bytes
	if r.spill != nil {
		held += r.spill.tail - r.spill.head
	}
	if r.limit > 0 && r.shared == nil && held > r.limit+maxBody+heldSize {
		return bad("%d bytes are held back, the limit is %d", held, r.limit)
	}
	return nil
}

// seal ends the open epoch, whose sum is in body.
func (in *intake) seal(body []byte) error {
	r := in.r
	want, err := parseSum(body)
	if err != nil {
		return bad("%w", err)
	}
	if got := in.d.sum; want != got {
		return bad("%d records with CRC-32C %08x came, %d with %08x were sent", got.records, got.crc, want.records, want.crc)
	}
	if !in.synced {
		return bad("before SYNCED")
	}
	in.d.sum = sum{}
	if in.epoch == 1 {
		if err := in.copied(); err != nil {
			return err
		}
	}
	if in.epoch > 1 && r.journal != nil {
		f, err := r.journal.seal(in.epoch)
		if err != nil {
			return &diskError{err}
		}
		r.mu.Lock()
		err = r.journal.keep(in.epoch, f)
		r.mu.Unlock()
		if err != nil {
			return &diskError{fmt.Errorf("diskrepl: durable journal: %w", err)}
		}
	}
	if err := r.seal(in.epoch, in.log); err != nil {
		return err
	}
	in.log, in.direct = new(epochLog), false
	in.epoch++
	return nil
}

// noHash is sent as the hash of a chunk that is to be written whatever the
// primary's has.
var noHash [hashSize]byte

// sendHashes sends the primary the hashes of all chunks, as the storage has
// them. A chunk that can't be read is to be written, which makes most disks
// readable there.
func (r *Replica) sendHashes() error {
	// A process before this one may have left pages that can't be written back.
	if err := r.dev.Flush(); err != nil {
		return &diskError{fmt.Errorf("diskrepl: flush before the first copy: %w", err)}
	}
	const perRecord = 128
	size := r.dev.Size()
	if r.copyAll {
		if err := r.dev.forget(0, size); err != nil {
			return &diskError{err}
		}
	}
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
			h := noHash
			if !r.copyAll && r.dev.readStable(b, off) == nil {
				h = sha256.Sum256(b)
			}
			out = append(out, h[:]...)
			off += int64(len(b))
		}
		record{typ: recHashes, n: uint32(len(out) - headerSize), off: uint64(from)}.append(out[:0])
		if r.send(out) != nil {
			return nil // the next read fails too, and says why
		}
	}
	return nil
}

// flushFirstCopy makes the first copy durable before the first commit: while
// the domain's memory is copied there is time for that.
func (r *Replica) flushFirstCopy() error {
	if err := r.dev.Flush(); err != nil {
		return fmt.Errorf("diskrepl: flush the first copy: %w", err)
	}
	return nil
}

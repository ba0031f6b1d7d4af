package diskrepl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"syscall"
	"time"
)

// ErrGivenUp is the error of a disk that was given up: the domain runs on the
// other host, and the writes that were held here are discarded.
var ErrGivenUp = errors.New("diskrepl: the disk was given up to the other host")

// A Shared is the primary's disk on storage that both hosts see. It is a
// Device. In a session, from the first Seal on, it holds writes back in an
// EpochStore until their epoch is released, and it does so after the session
// too, until ReleaseAll or GiveUp. Reads return held data.
type Shared struct {
	primaryDisk
	store EpochStore

	// Guarded by mu.
	session    *sharedSession // of link
	holding    bool           // writes are held back
	releaseAll bool           // all that is held goes to the storage, which ends holding
	givenUp    bool           // GiveUp was called
	flushing   bool           // the flusher runs
	limit      int64          // of bytes, as the backup says
	room       int64          // of bytes, which the EpochStore has: at most limit
	bytes      int64          // in epochs
	epochs     []*heldEpoch   // oldest first; the last one is open
	released   uint64         // newest epoch that the backup has acknowledged
	verified   bool           // the backup has read what was written in this session
	err        error          // of the last try to write to the storage
	again      time.Time      // when to try again
	scratch    []byte
}

// heldAlone limits the bytes that are held while no backup says how many it can
// hold.
const heldAlone = 256 << 20

// NewShared returns a Shared on the storage dev without a link. If an earlier
// process left epochs in store, it resumes from them: it holds writes until
// ReleaseAll, or releases what ReleaseAll had released.
func NewShared(dev Device, store EpochStore) (*Shared, error) {
	s := &Shared{store: store, limit: heldAlone, room: heldAlone}
	s.init(dev)
	left, releaseAll, err := store.Left()
	if err != nil {
		return nil, fmt.Errorf("diskrepl: writes held by an earlier process: %w", err)
	}
	numbers := slices.Sorted(maps.Keys(left))
	for i, n := range numbers {
		e := &heldEpoch{epoch: n, f: left[n], refs: 1}
		// The process may have been killed while it wrote the last record,
		// which was not answered then. What is there of the record is cut off,
		// because the next record may be shorter.
		err := e.recover(dev.Size())
		if i == len(numbers)-1 && errors.Is(err, ErrLost) {
			err = e.f.Truncate(e.size)
		}
		if err != nil {
			return nil, fmt.Errorf("diskrepl: writes held by an earlier process, epoch %d: %w", n, err)
		}
		s.epochs = append(s.epochs, e)
		s.bytes += e.size
	}
	if len(s.epochs) > 0 {
		s.holding, s.releaseAll = true, releaseAll
		s.startFlusher()
	}
	return s, nil
}

// Attach begins a session over conn, which the Link closes: the backup verifies
// that it sees the same storage, and the first Seal begins to hold writes back.
// It fails if the Shared has a link or holds writes of an earlier session, and
// returns [ErrGivenUp] after GiveUp and [ErrDetached] after Stop. The link is
// lost with [ErrOtherStorage] if the verification fails.
func (s *Shared) Attach(conn io.ReadWriteCloser, o Options) (*Link, error) {
	return s.attach(conn, o, func(l *Link) (session, error) {
		switch {
		case s.givenUp:
			return nil, ErrGivenUp
		case s.holding:
			return nil, errors.New("diskrepl: writes of an earlier session are still held")
		}
		s.limit, s.room, s.released, s.verified = o.Limit, o.Limit, 0, false
		s.session = &sharedSession{Link: l, s: s, answers: make(chan []byte)}
		l.wg.Go(s.session.verify)
		return s.session, nil
	})
}

// open creates the file of an epoch and makes that the open one.
func (s *Shared) open(epoch uint64) error {
	f, err := s.store.Create(epoch)
	if err != nil {
		return fmt.Errorf("diskrepl: hold writes back: %w", err)
	}
	s.epochs = append(s.epochs, &heldEpoch{epoch: epoch, f: f, refs: 1})
	return nil
}

// seal ends an epoch. The first seal of a session begins to hold writes back.
// It is called with the lock held.
func (s *Shared) seal(epoch uint64) error {
	if !s.holding {
		if err := s.store.SetReleaseAll(false); err != nil {
			return fmt.Errorf("diskrepl: hold writes back: %w", err)
		}
	}
	if err := s.open(epoch + 1); err != nil {
		return err
	}
	if !s.holding {
		s.holding = true
		s.startFlusher()
	}
	return nil
}

// full reports whether a record of n bytes has to wait.
func (s *Shared) full(n int64) bool { return s.bytes > 0 && s.bytes+n > s.room }

// unacked returns how many bytes are in epochs that are not acknowledged.
func (s *Shared) unacked() (n int64) {
	for _, e := range s.epochs {
		if e.epoch > s.released {
			n += e.size
		}
	}
	return n
}

// WriteAt writes p to the open epoch, or to the storage if no writes are held.
// It waits while the backup or the EpochStore has no room. A write that is held
// is durable when its epoch is acknowledged, whether or not fua is set.
func (s *Shared) WriteAt(p []byte, off int64, fua bool) error {
	return s.change(off, int64(len(p)), func() error { return s.dev.WriteAt(p, off, fua) }, recWrite, fuaFlag(fua), p)
}

// Zero makes a range read as zeroes. It is held back like WriteAt.
func (s *Shared) Zero(off, n int64, keep, fua bool) error {
	flags := fuaFlag(fua)
	if keep {
		flags |= flagKeep
	}
	return s.change(off, n, func() error { return s.dev.Zero(off, n, keep, fua) }, recZero, flags, nil)
}

// Trim trims a range. It is held back like WriteAt; until then the range reads
// as zeroes.
func (s *Shared) Trim(off, n int64, fua bool) error {
	return s.change(off, n, func() error { return s.dev.Trim(off, n, fua) }, recTrim, fuaFlag(fua), nil)
}

// change holds the record of a change back, or changes the storage by do.
func (s *Shared) change(off, n int64, do func() error, typ recordType, flags uint8, body []byte) error {
	span := s.lock.Lock(off, n)
	defer s.lock.Unlock(span)
	if held, err := s.hold(typ, flags, off, n, body); held {
		return err
	}
	return do()
}

// hold adds a record to the open epoch and sends it, if writes are held back,
// and reports whether they are.
func (s *Shared) hold(typ recordType, flags uint8, off, n int64, body []byte) (held bool, err error) {
	size := headerSize + int64(len(body))
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.givenUp:
			return true, ErrGivenUp
		case s.closed:
			return true, ErrDetached
		case !s.holding:
			return false, nil
		case s.releaseAll || s.full(size) || s.link != nil && s.link.queued >= queueMax:
			s.cond.Wait()
			continue
		}
		e := s.epochs[len(s.epochs)-1]
		rec := record{typ, flags, uint32(n), uint64(off), e.epoch}
		s.scratch = append(rec.append(s.scratch[:0]), body...)
		_, err := e.f.WriteAt(s.scratch, e.size)
		if err != nil {
			err = errors.Join(err, e.f.Truncate(e.size)) // remove a part of the record
		}
		if errors.Is(err, syscall.ENOSPC) && s.bytes > 0 {
			s.room = s.bytes // wait until an epoch has left
			continue
		}
		if err != nil {
			return true, fmt.Errorf("diskrepl: hold a write back: %w", err)
		}
		e.add(rec, e.size+size)
		s.bytes += size
		if l := s.link; l != nil {
			l.append(rec, body)
		}
		return true, nil
	}
}

// ReadAt reads what was written last, from the held epochs or from the storage.
func (s *Shared) ReadAt(p []byte, off int64) error {
	s.mu.Lock()
	if s.givenUp {
		s.mu.Unlock()
		return ErrGivenUp
	}
	if len(s.epochs) == 0 {
		s.mu.Unlock()
		return s.dev.ReadAt(p, off)
	}
	list := pieces(nil, s.epochs, off, off+int64(len(p)))
	s.mu.Unlock()

	var err error
	for _, x := range list {
		b := p[x.off-off : x.end-off]
		switch {
		case err != nil:
		case x.e == nil:
			err = s.dev.ReadAt(b, x.off)
		case x.typ == recWrite:
			err = x.e.load(b, x.at)
		default:
			clear(b)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range list {
		if x.e != nil {
			x.e.unref()
		}
	}
	return err
}

// Flush flushes the storage, unless writes are held back: those are durable
// when their epoch is acknowledged, and nothing that depends on them is visible
// before.
func (s *Shared) Flush() error {
	s.mu.Lock()
	for s.holding && s.releaseAll {
		s.cond.Wait()
	}
	holding, givenUp := s.holding, s.givenUp
	s.mu.Unlock()
	switch {
	case givenUp:
		return ErrGivenUp
	case holding:
		return nil
	}
	return s.dev.Flush()
}

// roomStep is how many bytes more are held, beyond a quarter, with each epoch that
// has left after the EpochStore had no room.
const roomStep = 64 << 10

// retryFlush is the pause after the storage failed.
const retryFlush = time.Second

func (s *Shared) startFlusher() {
	s.flushing = true
	go s.flusher()
}

// flusher writes released epochs to the storage. It runs while writes are held.
func (s *Shared) flusher() {
	s.mu.Lock()
	defer func() {
		s.flushing = false
		s.cond.Broadcast()
		s.mu.Unlock()
	}()
	for {
		for !s.givenUp && !s.closed && (len(s.epochs) == 0 || !s.releaseAll && s.epochs[0].epoch > s.released || time.Now().Before(s.again)) {
			if s.releaseAll && len(s.epochs) == 0 {
				s.holding, s.releaseAll, s.err = false, false, nil
				return
			}
			s.cond.Wait()
		}
		if s.givenUp || s.closed {
			return
		}
		e := s.epochs[0]
		s.mu.Unlock()
		err := e.x.writeOut(s.dev, e.load)
		s.mu.Lock()
		s.err = err
		if err != nil {
			// The domain has the answers to these writes, so they are tried
			// until the storage takes them.
			s.again = time.Now().Add(retryFlush)
			time.AfterFunc(retryFlush, s.wake)
			continue
		}
		if s.givenUp {
			return
		}
		if s.link != nil && !s.releaseAll {
			s.session.applied(e)
		}
		s.epochs = s.epochs[1:]
		s.bytes -= e.size
		e.unref()
		// Others may have taken the room that was missing, and given it back.
		s.room = min(s.room+s.room/4+roomStep, s.limit)
		s.cond.Broadcast()
	}
}

// ReleaseAll releases everything that is held, and then holds nothing back any
// more. Call it when the session is over and this host is known to own the
// domain. It does not wait until the storage has everything; the domain's
// writes do, and so does AwaitReleasedAll. A restarted process resumes the
// release, unless ReleaseAll returned an error.
func (s *Shared) ReleaseAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.holding || s.givenUp {
		return nil
	}
	err := s.store.SetReleaseAll(true)
	s.releaseAll = true
	s.cond.Broadcast()
	return err
}

// GiveUp discards everything that is held, and gives the disk up: reads and
// writes return [ErrGivenUp] from then on. It does nothing if nothing is held
// back. When it returns this process does not write to the storage any more.
func (s *Shared) GiveUp() {
	s.unlink() // the flusher may wait for an answer
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.holding {
		return
	}
	s.givenUp = true
	s.cond.Broadcast()
	for s.flushing {
		s.cond.Wait()
	}
	for _, e := range s.epochs {
		e.unref()
	}
	s.epochs, s.bytes = nil, 0
}

// Stop ends the link, and all writing to the storage by this process. What is
// held is left to the next process.
func (s *Shared) Stop() {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.flushing {
		s.cond.Wait()
	}
	for _, e := range s.epochs {
		e.f.Close()
	}
}

// Holding is what a Shared holds back.
type Holding struct {
	On         bool   `json:"on"`
	Bytes      int64  `json:"bytes"`
	ReleaseAll bool   `json:"freed"`             // all of it is on its way to the storage
	GivenUp    bool   `json:"dropped,omitempty"` // the disk was given up
	Error      string `json:"error,omitempty"`   // of the last try to write to the storage
}

// Holding returns a snapshot.
func (s *Shared) Holding() Holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := Holding{On: s.holding, Bytes: s.bytes, ReleaseAll: s.releaseAll, GivenUp: s.givenUp}
	if s.err != nil {
		v.Error = s.err.Error()
	}
	return v
}

// Drain waits until the storage has every epoch that was released. Nothing more
// is written to the storage then until the next Release. It returns
// [ErrGivenUp] if the disk was given up or stopped, or the error of ctx.
func (s *Shared) Drain(ctx context.Context) error {
	return s.await(ctx, func() bool { return len(s.epochs) == 0 || s.epochs[0].epoch > s.released })
}

// AwaitReleasedAll waits until nothing is held back. It returns [ErrGivenUp] if
// the disk was given up or stopped, or the error of ctx.
func (s *Shared) AwaitReleasedAll(ctx context.Context) error {
	return s.await(ctx, func() bool { return !s.holding })
}

func (s *Shared) await(ctx context.Context, reached func() bool) error {
	defer context.AfterFunc(ctx, s.wake)()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !reached() {
		switch {
		case s.givenUp || s.closed:
			return ErrGivenUp
		case ctx.Err() != nil:
			if s.err != nil {
				return fmt.Errorf("%w: %w", ctx.Err(), s.err)
			}
			return ctx.Err()
		}
		s.cond.Wait()
	}
	return nil
}

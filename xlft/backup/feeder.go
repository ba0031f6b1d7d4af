package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"xlft/xlft/wire"
)

// An epoch is a checkpoint as it arrived, verified.
type epoch struct {
	number uint64
	pieces [][]byte
}

// add takes a piece, and reports whether the piece's buffer is kept. A piece of a few
// bytes in a buffer of DataBody would cost a peer nothing and this host much: what
// fits goes to the end of the last piece, so that at most half of the memory is
// unused.
func (e *epoch) add(piece []byte, free *wire.Buffers) (kept bool) {
	if n := len(e.pieces); n > 0 {
		if last := e.pieces[n-1]; cap(last)-len(last) >= len(piece) {
			e.pieces[n-1] = append(last, piece...)
			return false
		}
	}
	if len(piece) > wire.DataBody/2 {
		e.pieces = append(e.pieces, piece)
		return true
	}
	buf := free.Get()
	if buf == nil {
		buf = make([]byte, 0, wire.DataBody)
	}
	e.pieces = append(e.pieces, append(buf, piece...))
	return false
}

// A feeder gives epochs to a replica's restore, in order. The first one goes
// there as it arrives, later ones when they are whole and acknowledged; at most
// two are in memory at a time.
type feeder struct {
	to   Replica
	next chan *epoch  // whole epochs on their way; has room for one
	free wire.Buffers // of epochs that were fed

	mu     sync.Mutex
	cond   *sync.Cond
	fed    uint64          // newest epoch that the restore has
	took   []time.Duration // by the newest epochs but the first, to be restored
	closed bool
}

// paceOf is of how many epochs a feeder knows how long they took.
const paceOf = 64

func newFeeder(to Replica) *feeder {
	f := &feeder{to: to, next: make(chan *epoch, 1)}
	f.cond = sync.NewCond(&f.mu)
	return f
}

// stream gives the restore a piece of the first epoch.
func (f *feeder) stream(piece []byte) error {
	if _, err := f.to.Write(piece); err != nil {
		return fmt.Errorf("feed the restore: %w", err)
	}
	return nil
}

// mark says that what the restore was given ends epoch e.
func (f *feeder) mark(e uint64) error {
	if err := f.to.Checkpoint(); err != nil {
		return fmt.Errorf("feed the restore: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fed = e
	f.cond.Broadcast()
	return nil
}

// pace returns the newest epoch that the restore has taken, and the median of what the last
// ones took it. The ack of an epoch waits until the restore has taken the one before.
func (f *feeder) pace() (fed uint64, median time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.took) == 0 {
		return f.fed, 0
	}
	all := slices.Sorted(slices.Values(f.took))
	return f.fed, all[len(all)/2]
}

// put hands over a whole epoch. It does not wait: the epoch before has been fed
// by then, see await.
func (f *feeder) put(e *epoch) { f.next <- e }

// run feeds whole epochs until ctx ends, and then returns nil. An error means
// that the restore does not take them.
func (f *feeder) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-f.next:
			begun := time.Now()
			for _, p := range e.pieces {
				if err := f.stream(p); err != nil {
					return fmt.Errorf("epoch %d: %w", e.number, err)
				}
			}
			f.free.Put(e.pieces...)
			if err := f.mark(e.number); err != nil {
				return fmt.Errorf("epoch %d: %w", e.number, err)
			}
			f.mu.Lock()
			if f.took = append(f.took, time.Since(begun)); len(f.took) > paceOf {
				f.took = slices.Delete(f.took, 0, 1)
			}
			f.mu.Unlock()
		}
	}
}

// errFeederClosed: the session has ended.
var errFeederClosed = errors.New("the restore is fed no more")

// await waits until the restore has epoch e. The error is ctx's cause, or
// errFeederClosed.
func (f *feeder) await(ctx context.Context, e uint64) error {
	defer context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.cond.Broadcast()
	})()
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.fed < e && !f.closed && ctx.Err() == nil {
		f.cond.Wait()
	}
	switch {
	case f.closed:
		return errFeederClosed
	case f.fed < e:
		return fmt.Errorf("epoch %d is not restored: %w", e, context.Cause(ctx))
	}
	return nil
}

// close frees whoever waits for an epoch that will not be fed.
func (f *feeder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.cond.Broadcast()
}

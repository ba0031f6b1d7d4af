package diskrepl

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// A journal keeps the epochs that a Replica holds on stable storage, so that
// what was acknowledged outlives both hosts. The file of an epoch has its
// records and ends with its SEAL. It is completed before the first of its
// writes goes to the disk. So a file that does not verify is torn if it was not
// completed, and the disk has nothing of it; if it was completed, it is damaged.
type journal struct {
	store EpochStore

	// Used by the intake only.
	open EpochFile // of the open epoch; nil before its first record
	size int64
	buf  []byte
	sum  sum

	// Guarded by the Replica's lock. held are the sealed epochs that the disk
	// may lack, and the newest one, which records the epoch that the disk is
	// at.
	held map[uint64]EpochFile
	have uint64 // newest epoch that the disk has on stable storage
}

// journalPiece is how many bytes are written to a file at once.
const journalPiece = 256 << 10

// Durable makes the Replica keep a journal in store: an epoch counts as sealed
// when it is on stable storage there, and it stays until it is on the disk's
// stable storage. Call Durable before Run. The store must be empty.
func (r *Replica) Durable(store EpochStore) {
	r.journal = &journal{store: store, held: map[uint64]EpochFile{}}
}

// begin creates the file of an epoch.
func (j *journal) begin(epoch uint64) (err error) {
	if j.open, err = j.store.Create(epoch); err != nil {
		return fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	j.size, j.sum = 0, sum{}
	return nil
}

// add appends a record to the open epoch.
func (j *journal) add(rec record, body []byte) error {
	if j.open == nil {
		if err := j.begin(rec.epoch); err != nil {
			return err
		}
	}
	j.buf = append(rec.append(j.buf), body...)
	j.sum.records++
	if len(j.buf) >= journalPiece {
		return j.flush()
	}
	return nil
}

// flush writes the buffer to the file.
func (j *journal) flush() error {
	if _, err := j.open.WriteAt(j.buf, j.size); err != nil {
		return fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	j.size += int64(len(j.buf))
	j.sum.add(0, j.buf)
	j.buf = j.buf[:0]
	return nil
}

// seal returns the file of the open epoch when it is on stable storage. The sum
// of its SEAL is that of the records in the file; the stream has others too.
func (j *journal) seal(epoch uint64) (EpochFile, error) {
	var err error
	if j.open == nil {
		err = j.begin(epoch)
	} else {
		err = j.flush()
	}
	if err != nil {
		return nil, err
	}
	j.buf = j.sum.append(record{typ: recSeal, n: sealSize, epoch: epoch}.append(j.buf))
	if err := j.flush(); err != nil {
		return nil, err
	}
	f := j.open
	j.open = nil
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	return f, nil
}

// keep adds the file of a sealed epoch. It is called with the Replica's lock
// held.
func (j *journal) keep(epoch uint64, f EpochFile) error {
	j.held[epoch] = f
	return j.tidy(epoch)
}

// complete completes the file of a sealed epoch, which no other goroutine uses.
// It takes the Replica's lock.
func (r *Replica) complete(epoch uint64) error {
	r.mu.Lock()
	var f EpochFile
	if r.journal != nil {
		f = r.journal.held[epoch]
	}
	r.mu.Unlock()
	if f == nil {
		return nil
	}
	if err := f.Complete(); err != nil {
		return fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	return nil
}

// done says that the disk has an epoch on stable storage. It is called with the
// Replica's lock held. j may be nil.
func (j *journal) done(epoch uint64) error {
	if j == nil || len(j.held) == 0 {
		return nil
	}
	j.have = epoch
	return j.tidy(slices.Max(slices.Collect(maps.Keys(j.held))))
}

// tidy removes the files of epochs before newest that the disk has.
func (j *journal) tidy(newest uint64) (err error) {
	for _, e := range slices.Sorted(maps.Keys(j.held)) {
		if e <= j.have && e < newest {
			err = errors.Join(err, j.held[e].Remove())
			delete(j.held, e)
		}
	}
	return err
}

// close closes the files and leaves them where they are: the newest one records
// the epoch that the disk is at. j may be nil.
func (j *journal) close() {
	if j == nil {
		return
	}
	for _, f := range j.held {
		f.Close()
	}
	if j.open != nil {
		j.open.Close()
	}
}

// ErrJournalDamaged says that a Replica's journal lost on its storage what it had
// completely. The disk may have any part of the epoch's writes.
var ErrJournalDamaged = errors.New("diskrepl: the durable journal is damaged")

// Newest returns the oldest and the newest epoch of a Replica's journal, after
// a crash of its host, or 0 and 0 if it has none. The disk, of size bytes, has
// all epochs before the oldest. An epoch that the host did not receive
// completely does not count; an error says that the journal is damaged.
func Newest(store EpochStore, size int64) (oldest, newest uint64, err error) {
	epochs, left, err := openJournal(store)
	if err != nil || len(epochs) == 0 {
		return 0, 0, err
	}
	top := len(epochs) - 1
	_, err = readEpoch(left[epochs[top]], epochs[top], size)
	if err != nil && !left[epochs[top]].Completed() {
		// The host died while it received this epoch. The one before was received
		// before that.
		if top--; top < 0 {
			return 0, 0, nil
		}
		_, err = readEpoch(left[epochs[top]], epochs[top], size)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%w: epoch %d: %w", ErrJournalDamaged, epochs[top], err)
	}
	return epochs[0], epochs[top], nil
}

// Cut removes all epochs after the given one from a Replica's journal.
func Cut(store EpochStore, epoch uint64) error {
	epochs, left, err := openJournal(store)
	for _, e := range epochs {
		if e > epoch {
			err = errors.Join(err, left[e].Remove())
		}
	}
	return err
}

// Replay brings a Replica's disk to an epoch of its journal, after a crash of
// its host: to the newest that [Newest] returned, or to an older one down to
// that before the oldest. What it writes it reads back from the storage, which may
// have failed before: the journal is what repairs such a disk. It does not change
// the journal, and can be repeated with the same or a later epoch.
func Replay(dev Device, store EpochStore, epoch uint64) error {
	epochs, left, err := openJournal(store)
	if err != nil {
		return err
	}
	if len(epochs) == 0 || epoch < epochs[0]-1 || epoch > epochs[len(epochs)-1] {
		return fmt.Errorf("diskrepl: durable journal: it has epochs %v, not %d", epochs, epoch)
	}
	r := &Replica{dev: newGuard(dev)}
	// Pages that could not be written back would take what is written now, and lose
	// it. That they could not need not be known here: the journal has what they had.
	dev.Flush()
	if err := r.dev.forget(0, dev.Size()); err != nil {
		return err
	}
	back := &readBack{r: r, log: new(epochLog)}
	for _, e := range epochs {
		if e > epoch {
			break
		}
		recs, err := readEpoch(left[e], e, dev.Size())
		if err != nil {
			return fmt.Errorf("%w: epoch %d: %w", ErrJournalDamaged, e, err)
		}
		for _, l := range recs {
			if err := r.apply(l.record, l.body); err != nil {
				return err
			}
			if err := back.add(l.record, l.body); err != nil {
				return err
			}
		}
	}
	return back.verify()
}

// openJournal opens the files of a journal. epochs are their numbers, in order.
func openJournal(store EpochStore) (epochs []uint64, left map[uint64]EpochFile, err error) {
	left, _, err = store.Left()
	if err != nil {
		return nil, nil, fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	epochs = slices.Sorted(maps.Keys(left))
	for i, e := range epochs[:max(len(epochs)-1, 0)] {
		if epochs[i+1] != e+1 {
			return nil, nil, fmt.Errorf("diskrepl: durable journal: epoch %d after epoch %d", epochs[i+1], e)
		}
	}
	return epochs, left, nil
}

// readEpoch reads the file of an epoch up to its SEAL, which has to be there.
// size is that of the disk.
func readEpoch(f EpochFile, epoch uint64, size int64) (recs []logged, err error) {
	whole, get := false, func(n int) []byte { return make([]byte, n) }
	err = readEpochFile(f, epoch, size, get, func(d *reader, rec record, body []byte) (bool, error) {
		switch rec.typ {
		case recWrite, recZero, recTrim, recFlush:
			recs = append(recs, logged{record: rec, body: body})
			return true, nil
		case recSeal:
		default:
			return false, fmt.Errorf("%v in a journal", rec.typ)
		}
		whole = true
		want, err := parseSum(body)
		if err == nil && want != d.sum {
			err = fmt.Errorf("%d records with CRC-32C %08x, want %d with %08x", d.sum.records, d.sum.crc, want.records, want.crc)
		}
		return false, err
	})
	if err == nil && !whole {
		err = fmt.Errorf("%w: no seal", ErrLost)
	}
	return recs, err
}

package diskrepl

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// A durableLog keeps the epochs that a Replica holds on stable storage, as
// layers: what was acked outlives both hosts.
type durableLog struct {
	store Layers
	open  Layer // of the epoch that comes in; nil before its first record
	size  int64
	buf   []byte
	held  map[uint64]Layer // sealed ones that the disk may not have
}

// durablePiece is what is written to a layer at once.
const durablePiece = 256 << 10

// Durable makes an epoch count as whole only when it is on stable storage, in
// store, until the disk has it there. It is called before Run, and forgets what
// an earlier session left there.
func (r *Replica) Durable(store Layers) error {
	left, _, err := store.Left()
	for _, l := range left {
		err = errors.Join(err, l.Remove())
	}
	if err != nil {
		return fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	r.durable = &durableLog{store: store, held: map[uint64]Layer{}}
	return nil
}

// add notes a record; the receiver alone calls it.
func (d *durableLog) add(rec record, body []byte) error {
	if d.open == nil {
		var err error
		if d.open, err = d.store.Create(rec.epoch); err != nil {
			return fmt.Errorf("diskrepl: durable journal: %w", err)
		}
		d.size = 0
	}
	d.buf = append(rec.append(d.buf), body...)
	if len(d.buf) >= durablePiece {
		return d.flush()
	}
	return nil
}

func (d *durableLog) flush() error {
	if _, err := d.open.WriteAt(d.buf, d.size); err != nil {
		return fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	d.size += int64(len(d.buf))
	d.buf = d.buf[:0]
	return nil
}

// seal returns when the epoch is on stable storage, and its layer.
func (d *durableLog) seal(rec record, sum []byte) (Layer, error) {
	err := d.add(rec, sum)
	if err == nil && len(d.buf) > 0 {
		err = d.flush()
	}
	if err != nil {
		return nil, err
	}
	l := d.open
	d.open = nil
	if err := l.Sync(); err != nil {
		return nil, fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	return l, nil
}

// durableDone forgets an epoch that the disk has on stable storage.
func (r *Replica) durableDone(epoch uint64) error {
	if r.durable == nil {
		return nil
	}
	r.mu.Lock()
	l := r.durable.held[epoch]
	delete(r.durable.held, epoch)
	r.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.Remove()
}

// durableEnd forgets all: the session is over, and the disk is what it is.
func (r *Replica) durableEnd() {
	if r.durable == nil {
		return
	}
	for _, l := range r.durable.held {
		l.Remove()
	}
	if r.durable.open != nil {
		r.durable.open.Remove()
	}
	r.durable = nil
}

// Replay brings a replica's disk to the newest epoch that a durable journal has
// whole, after a crash of its host, and empties the journal. It returns that
// epoch; 0: the journal had none, and the disk is left as it is.
func Replay(dev Device, store Layers) (newest uint64, err error) {
	left, _, err := store.Left()
	if err != nil {
		return 0, fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	epochs := make([]uint64, 0, len(left))
	for e := range left {
		epochs = append(epochs, e)
	}
	slices.Sort(epochs)
	r := &Replica{dev: dev}
	for i, e := range epochs {
		if i > 0 && e != epochs[i-1]+1 {
			return newest, fmt.Errorf("diskrepl: durable journal: epoch %d after epoch %d", e, epochs[i-1])
		}
		recs, err := readEpoch(left[e], e, dev.Size())
		if err != nil {
			if i == len(epochs)-1 {
				break // the host died while it came
			}
			return newest, fmt.Errorf("diskrepl: durable journal, epoch %d: %w", e, err)
		}
		for _, l := range recs {
			if err := r.apply(l.record, l.body); err != nil {
				return newest, err
			}
		}
		newest = e
	}
	if newest > 0 {
		if err := dev.Flush(); err != nil {
			return newest, err
		}
	}
	for _, e := range epochs {
		err = errors.Join(err, left[e].Remove())
	}
	return newest, err
}

// readEpoch reads a layer that has all of an epoch, up to its seal.
func readEpoch(l Layer, epoch uint64, disk int64) (recs []logged, err error) {
	d := newReader(io.NewSectionReader(l, 0, 1<<62))
	for {
		rec, body, err := d.next(func(n int) []byte { return make([]byte, n) })
		if err != nil {
			return nil, err
		}
		if rec.epoch != epoch || int64(rec.off) < 0 || int64(rec.off)+int64(rec.n) > disk && rec.typ != recSeal {
			return nil, fmt.Errorf("%v of epoch %d, range %d+%d of %d bytes", rec.typ, rec.epoch, rec.off, rec.n, disk)
		}
		if rec.typ == recSeal {
			want, err := parseSum(body)
			if err == nil && want != d.sum {
				err = fmt.Errorf("%d records with CRC-32C %08x, want %d with %08x", d.sum.records, d.sum.crc, want.records, want.crc)
			}
			return recs, err
		}
		recs = append(recs, logged{record: rec, body: body})
	}
}

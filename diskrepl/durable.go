package diskrepl

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// A durableLog keeps the epochs that a Replica holds on stable storage, as
// layers: what was acked outlives both hosts.
type durableLog struct {
	store Layers
	open  Layer // of the epoch that comes in; nil before its first record
	size  int64
	buf   []byte
	sum   sum
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

func (d *durableLog) begin(epoch uint64) (err error) {
	if d.open, err = d.store.Create(epoch); err != nil {
		return fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	d.size, d.sum = 0, sum{}
	return nil
}

// add notes a record; the receiver alone calls it.
func (d *durableLog) add(rec record, body []byte) error {
	if d.open == nil {
		if err := d.begin(rec.epoch); err != nil {
			return err
		}
	}
	d.buf = append(rec.append(d.buf), body...)
	d.sum.records++
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
	d.sum.add(0, d.buf)
	d.buf = d.buf[:0]
	return nil
}

// seal returns when the epoch is on stable storage, and its layer. Its sum is of
// what the layer has: a stream has records of other kinds too.
func (d *durableLog) seal(epoch uint64) (Layer, error) {
	var err error
	if d.open == nil {
		err = d.begin(epoch)
	} else {
		err = d.flush()
	}
	if err != nil {
		return nil, err
	}
	d.buf = d.sum.append(record{typ: recSeal, n: sealSize, epoch: epoch}.append(d.buf))
	if err := d.flush(); err != nil {
		return nil, err
	}
	l := d.open
	d.open = nil
	if err := l.Sync(); err != nil {
		return nil, fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	return l, nil
}

// done forgets an epoch that the disk has on stable storage. It is called with
// the Replica's lock; nil has nothing.
func (d *durableLog) done(epoch uint64) error {
	if d == nil || d.held[epoch] == nil {
		return nil
	}
	l := d.held[epoch]
	delete(d.held, epoch)
	return l.Remove()
}

// end ends the session. What the disk has exactly, or what is not of it, is
// forgotten; if the disk failed, it is not: what is held may be half there.
func (d *durableLog) end(failed bool) {
	if d == nil {
		return
	}
	for _, l := range d.held {
		if failed {
			l.Close()
		} else {
			l.Remove()
		}
	}
	if d.open != nil {
		d.open.Remove()
	}
}

// Replay brings a replica's disk to the newest epoch that a durable journal has
// whole, after a crash of its host, and empties the journal. It returns that
// epoch; 0: the journal had none, and the disk is left as it is.
func Replay(dev Device, store Layers) (newest uint64, err error) {
	left, _, err := store.Left()
	if err != nil {
		return 0, fmt.Errorf("diskrepl: durable journal: %w", err)
	}
	epochs := slices.Sorted(maps.Keys(left))
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
	whole, get := false, func(n int) []byte { return make([]byte, n) }
	err = readLayer(l, epoch, disk, get, func(d *reader, rec record, body []byte) (bool, error) {
		if rec.typ != recSeal {
			recs = append(recs, logged{record: rec, body: body})
			return true, nil
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

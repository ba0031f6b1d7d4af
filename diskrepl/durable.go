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

	// Guarded by the Replica's lock.
	held map[uint64]Layer // sealed ones that the disk may not have, and the newest: it says of which epoch the disk is
	have uint64           // newest epoch that the disk has on stable storage
}

// durablePiece is what is written to a layer at once.
const durablePiece = 256 << 10

// Durable makes an epoch count as whole only when it is on stable storage, in
// store, until the disk has it there. It is called before Run, with nothing of
// an earlier session in store.
func (r *Replica) Durable(store Layers) {
	r.durable = &durableLog{store: store, held: map[uint64]Layer{}}
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

// keep takes a sealed layer in. It is called with the Replica's lock.
func (d *durableLog) keep(epoch uint64, l Layer) error {
	d.held[epoch] = l
	return d.tidy(epoch)
}

// done says that the disk has an epoch on stable storage. It is called with the
// Replica's lock; nil has nothing.
func (d *durableLog) done(epoch uint64) error {
	if d == nil || len(d.held) == 0 {
		return nil
	}
	d.have = epoch
	return d.tidy(slices.Max(slices.Collect(maps.Keys(d.held))))
}

func (d *durableLog) tidy(newest uint64) (err error) {
	for _, e := range slices.Sorted(maps.Keys(d.held)) {
		if e <= d.have && e < newest {
			err = errors.Join(err, d.held[e].Remove())
			delete(d.held, e)
		}
	}
	return err
}

// end closes what is there. It is needed until it is known otherwise of which
// epoch the disk is.
func (d *durableLog) end() {
	if d == nil {
		return
	}
	for _, l := range d.held {
		l.Close()
	}
	if d.open != nil {
		d.open.Close()
	}
}

// Newest returns the newest epoch that a durable journal has whole, and the
// oldest one, after a crash of its host; 0: it has none. The disk has all epochs
// before the oldest. It has size bytes.
func Newest(store Layers, size int64) (oldest, newest uint64, err error) {
	epochs, left, err := journal(store)
	if err != nil || len(epochs) == 0 {
		return 0, 0, err
	}
	top := len(epochs) - 1
	if _, err = readEpoch(left[epochs[top]], epochs[top], size); err != nil {
		// The host died while it came.
		if top--; top < 0 {
			return 0, 0, nil
		}
		if _, err = readEpoch(left[epochs[top]], epochs[top], size); err != nil {
			return 0, 0, fmt.Errorf("diskrepl: durable journal, epoch %d: %w", epochs[top], err)
		}
	}
	return epochs[0], epochs[top], nil
}

// Cut removes what a durable journal has after an epoch.
func Cut(store Layers, epoch uint64) error {
	epochs, left, err := journal(store)
	for _, e := range epochs {
		if e > epoch {
			err = errors.Join(err, left[e].Remove())
		}
	}
	return err
}

// Replay brings a replica's disk to an epoch that [Newest] has found, or to one
// before that, after a crash of its host. The journal stays.
func Replay(dev Device, store Layers, epoch uint64) error {
	epochs, left, err := journal(store)
	if err != nil {
		return err
	}
	if len(epochs) == 0 || epoch < epochs[0]-1 || epoch > epochs[len(epochs)-1] {
		return fmt.Errorf("diskrepl: durable journal: it has epochs %v, not %d", epochs, epoch)
	}
	r := &Replica{dev: dev}
	for _, e := range epochs {
		if e > epoch {
			break
		}
		recs, err := readEpoch(left[e], e, dev.Size())
		if err != nil {
			return fmt.Errorf("diskrepl: durable journal, epoch %d: %w", e, err)
		}
		if err := r.applyAll(&epochLog{recs: recs}); err != nil {
			return err
		}
	}
	return dev.Flush()
}

// journal returns what a durable journal has, in order.
func journal(store Layers) (epochs []uint64, left map[uint64]Layer, err error) {
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

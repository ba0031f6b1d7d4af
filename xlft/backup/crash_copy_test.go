package backup

import (
	"errors"
	"fmt"
	"slices"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// diskRecordOf is a record of a disk, and what the model knows of that disk.
type diskRecordOf struct {
	xlft.DiskRecord
	of   *crashSession // that a copy is of
	line line
}

// A crashHost is a receiver's DiskHost.
type crashHost struct {
	*hand
	of *crashSession
}

func (h crashHost) Journal() (memory, file int64) { return h.of.memory, h.of.file }

func (h crashHost) Open(string, wire.Disk) (DiskCopy, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &crashCopy{crashDevice{h.hand}, h.of, h.record.DiskRecord}, nil
}

// A crashCopy is a DiskCopy. It does what diskcopy's does.
type crashCopy struct {
	crashDevice
	of  *crashSession
	was xlft.DiskRecord
}

func (c *crashCopy) Was() xlft.DiskRecord { return c.was }

func (c *crashCopy) Begin(st xlft.DiskState) error {
	if err := c.save(xlft.DiskRecord{State: st, SyncPoint: c.was.SyncPoint, Failed: c.was.Failed}); err != nil {
		return err
	}
	return crashStore{c.hand}.clear()
}

func (c *crashCopy) save(r xlft.DiskRecord) error {
	return c.do(nil, func() error {
		c.host.record = diskRecordOf{r, c.of, slices.Clone(c.of.line)}
		if r.State == xlft.UpToDate {
			c.host.record.of = nil
			c.host.record.line = append(c.host.record.line, c.of.w.newLine())
		}
		return nil
	})
}

func (c *crashCopy) Record(r xlft.DiskRecord) error {
	if err := c.save(r); err != nil {
		return err
	}
	if r.State == xlft.UpToDate || r.SyncPoint.Epoch > 0 {
		return crashStore{c.hand}.clear()
	}
	return nil
}

func (c *crashCopy) SpillFile() diskrepl.SpillFile {
	return &crashSpill{chance: c.chance, rotten: c.of.rottenSpill}
}

func (c *crashCopy) Durable() diskrepl.EpochStore {
	if !c.of.durable {
		return nil
	}
	return crashStore{c.hand}
}

func (c *crashCopy) Close() error { return nil }

// errNotPromoted: the copy's record says that no domain can run from it.
var errNotPromoted = errors.New("crash matrix: inconsistent")

// promote brings a copy to what a domain can run from, as "xlft disk promote"
// does, and returns the epoch that its journal brought it to, or that of its
// record; 0 if none is known.
func (h *hand) promote() (uint64, error) {
	h.mu.Lock()
	r, any := h.record, len(h.files.m) > 0
	h.mu.Unlock()
	if r.State != xlft.Consistent {
		return 0, errNotPromoted
	}
	epoch, dev, files := r.SyncPoint.Epoch, crashDevice{h}, crashStore{h}
	switch {
	case any:
		_, newest, err := diskrepl.Newest(files, crashDisk)
		if err != nil {
			return 0, err
		}
		if newest > 0 {
			epoch = newest
			if err := diskrepl.Cut(files, newest); err != nil {
				return 0, err
			}
			if err := diskrepl.Replay(dev, files, newest); err != nil {
				return 0, err
			}
		}
	case r.Failed != "":
		return 0, errNotPromoted
	}
	if err := dev.Flush(); err != nil {
		return 0, err
	}
	err := h.do(nil, func() error {
		h.record.DiskRecord = xlft.DiskRecord{State: xlft.UpToDate, Failed: r.Failed, Data: r.Data.Next()}
		h.record.of, h.record.line = nil, append(slices.Clone(r.line), r.of.w.newLine())
		return nil
	})
	if err == nil {
		err = files.clear()
	}
	return epoch, err
}

// check supposes that the host's power failed at this instant, if it is up, and
// that its copy is promoted then: if that succeeds the disk must be one that
// the domain can run from.
func (h *host) check(when string) error {
	h.mu.Lock()
	if h.record.State != xlft.Consistent {
		h.mu.Unlock()
		return nil
	}
	s := h.record.of
	was := s.reached()
	after := newHost(h.name, h.chance)
	after.m, after.files, after.record = h.m, h.files, h.record
	if !h.down {
		after.m, after.files = h.m.afterPowerCut(h.chance), h.files.afterPowerCut(h.chance)
	} else {
		after.m, after.files = h.m.clone(), h.files.clone()
	}
	h.mu.Unlock()
	if h.chance.in(6) {
		after.files.rot(h.chance)
	}
	rotten := after.files.anyRotten()
	if h.chance.in(3) { // and it fails once more, while the copy is promoted
		after.cut = 1 + h.chance.n(12)
	}
	epoch, err := after.hand().promote()
	if after.isDown() {
		after.boot()
		if after.record.State != xlft.Consistent {
			return nil
		}
		epoch, err = after.hand().promote()
	}
	switch {
	case errors.Is(err, errNotPromoted):
		return nil
	case err != nil && rotten && errors.Is(err, diskrepl.ErrJournalDamaged):
		return nil
	case err != nil:
		return fmt.Errorf("%s: a copy on %s that is recorded as consistent (%+v) can't be promoted: %w", when, h.name, was, err)
	}
	values, unread := after.m.image()
	if err := s.judge(values, unread, epoch, was, rotten); err != nil {
		return fmt.Errorf("%s: the copy on %s, recorded as %+v, promoted to epoch %d (%+v): %w", when, h.name, h.recordNow().DiskRecord, epoch, was, err)
	}
	s.w.count("copies promoted", 1)
	return nil
}

func (h *host) recordNow() diskRecordOf {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record
}

func (m *medium) clone() *medium {
	c := *m
	for _, p := range []*[]uint64{&c.cache, &c.stable} {
		*p = slices.Clone(*p)
	}
	for _, p := range []*[]bool{&c.unread, &c.fresh, &c.stuck} {
		*p = slices.Clone(*p)
	}
	c.dirty = slices.Clone(m.dirty)
	return &c
}

func (f *crashFiles) clone() *crashFiles {
	c := &crashFiles{m: map[uint64]*crashFile{}, full: f.full}
	for e, x := range f.m {
		y := *x
		y.data, y.stable = slices.Clone(x.data), slices.Clone(x.stable)
		c.m[e] = &y
	}
	return c
}

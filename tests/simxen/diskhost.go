package simxen

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/wire"
)

// DiskHost opens the backup's copy of the disk for a receiver.
type DiskHost struct {
	P *Process
	// Broken, if set, wraps a copy so that it breaks a promise.
	Broken func(backup.DiskCopy) backup.DiskCopy
}

// Journal gives little memory, so that the spill file is used.
func (h *DiskHost) Journal() (memory, file int64) { return 1 << 10, 8 << 10 }

func (h *DiskHost) Open(domain string, d wire.Disk) (backup.DiskCopy, error) {
	p := h.P.h.platter
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users > 0 {
		return nil, errors.New("simxen: the disk is in use")
	}
	if dom := h.P.h.Domain(domain); dom != nil && dom.Runs() {
		return nil, fmt.Errorf("simxen: %s runs from it", domain)
	}
	p.users++
	c := backup.DiskCopy(&platterCopy{Platter: p, proc: h.P, was: xlft.DiskRecord{State: p.state, SyncPoint: p.mark, Failed: p.failed, Data: p.data}})
	h.P.onKill(func() { c.Close() })
	if h.Broken != nil {
		return h.Broken(c), nil
	}
	return c, nil
}

// platterCopy is a process's handle on a platter. After the death of the process it has no effect.
type platterCopy struct {
	*Platter
	proc *Process
	was  xlft.DiskRecord
	once sync.Once
}

func (c *platterCopy) WriteAt(b []byte, off int64, fua bool) error {
	if c.proc.h.DurableAck { // then a commit takes time, and a power cut may come in the middle of it
		time.Sleep(time.Duration(c.proc.h.outside.Rand()%2000) * time.Microsecond)
	}
	if c.proc.Dead() {
		return errDead
	}
	return c.Platter.WriteAt(b, off, fua)
}

func (c *platterCopy) Zero(off, n int64, _, fua bool) error {
	return c.WriteAt(make([]byte, n), off, fua)
}

func (c *platterCopy) Flush() error {
	c.proc.h.work()
	if c.proc.Dead() {
		return errDead
	}
	return c.Platter.Flush()
}

// SpillFile returns a file in memory.
func (c *platterCopy) SpillFile() diskrepl.SpillFile { return new(ramFile) }

// Durable returns the journal as the process sees it.
func (c *platterCopy) Durable() diskrepl.EpochStore {
	if !c.proc.h.DurableAck {
		return nil
	}
	return handFiles{c.journal, c.proc}
}

func (c *platterCopy) Was() xlft.DiskRecord { return c.was }

func (c *platterCopy) Begin(st xlft.DiskState) error {
	r := xlft.DiskRecord{State: st, Failed: c.was.Failed}
	if st == xlft.Inconsistent {
		r.SyncPoint = c.was.SyncPoint
	}
	if err := c.Record(r); err != nil {
		return err
	}
	c.journal.clear()
	return nil
}

func (c *platterCopy) Record(r xlft.DiskRecord) error {
	if c.proc.Dead() {
		return errDead
	}
	now := c.proc.h.outside.session()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.mark, c.failed, c.data = r.State, r.SyncPoint, r.Failed, r.Data
	if c.session = r.SyncPoint.Session; c.session == "" {
		c.session = now
	}
	if r.State == xlft.UpToDate || r.SyncPoint.Epoch > 0 {
		c.journal.clear()
	}
	return nil
}

func (c *platterCopy) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.users--
	})
	return nil
}

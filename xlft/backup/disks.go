package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// A DiskHost has the backup's copies of disks.
type DiskHost interface {
	// Open opens the copy of a domain's disk exclusively, and leaves its content
	// and record as they are.
	Open(domain string, d wire.Disk) (DiskCopy, error)
	// Journal is how many bytes of writes to hold back for each disk, at most:
	// in memory, and beyond that in a DiskCopy's SpillFile.
	Journal() (memory, file int64)
}

// A DiskCopy is the backup's copy of a disk.
type DiskCopy interface {
	diskrepl.Device
	// Was returns what the copy was when it was opened.
	Was() xlft.DiskRecord
	// Begin comes before the first write of a session. The copy is recorded in
	// that state, still as failed if it was and with its SyncPoint, and its journal on
	// stable storage is cleared.
	Begin(xlft.DiskState) error
	// Record records durably what the copy is. A record with a SyncPoint, or of a
	// disk that is UpToDate, makes the journal on stable storage needless, and
	// clears it.
	Record(xlft.DiskRecord) error
	// SpillFile takes the part of the journal that has no room in memory: a
	// file of diskrepl.SpillSize bytes, gone after Close. Nil if Journal has no
	// file.
	SpillFile() diskrepl.SpillFile
	// Durable keeps the journal on stable storage before an epoch counts as
	// whole; nil if that is not configured.
	Durable() diskrepl.EpochStore
	// Close closes it.
	Close() error
}

// A disk is a disk of a replica.
type disk struct {
	wire.Disk
	copy DiskCopy

	joined chan struct{} // closed when repl is there
	usable chan struct{} // closed when the copy is recorded as one that a domain can run from

	data xlft.DataGen // the primary's; set before joined is closed

	mu     lock
	repl   *diskrepl.Replica
	closed bool
	ours   bool // it is the domain's disk here, and no copy any more
}

// A lock is a mutex made of a channel: storage may hang while it is held, and the
// clock of a test that uses testing/synctest goes on.
type lock chan struct{}

func (l lock) Lock()   { l <- struct{}{} }
func (l lock) Unlock() { <-l }

// openDisks opens the copies of all disks that the primary offered.
func (s *session) openDisks() error {
	if len(s.offer.Disks) > 0 && s.r.Disks == nil {
		return fmt.Errorf("this host keeps no disks")
	}
	for _, d := range s.offer.Disks {
		c, err := s.r.Disks.Open(s.offer.Domain, d)
		if err != nil {
			s.closeDisks()
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
		s.disks = append(s.disks, &disk{Disk: d, copy: c, joined: make(chan struct{}), usable: make(chan struct{}), mu: make(lock, 1)})
	}
	return nil
}

// joinDisk serves a disk's connection to its end. The error says why the copy
// can't be trusted any more, or why the connection is refused.
func (s *session) joinDisk(c *wire.Conn) error {
	var want wire.DiskOpen
	c.SetDeadline(time.Now().Add(wire.OfferTimeout))
	if err := c.Expect(wire.TypeDisk, &want); err != nil {
		return err
	}
	var d *disk
	for _, have := range s.disks {
		if have.VDev == want.VDev {
			d = have
		}
	}
	switch {
	case d == nil:
		return refuse(c, wire.CodeProtocol, nil, fmt.Errorf("disk %.20q was not offered", want.VDev))
	case d.Disk != want.Disk || d.copy.Size() != want.Size:
		return refuse(c, wire.CodeUnfit, nil, fmt.Errorf("disk %s: %d bytes there, %d here", d.VDev, want.Size, d.copy.Size()))
	}
	data := xlft.DataGen{ID: want.Data, Past: want.Past}
	if err := data.MayOverwrite(d.copy.Was()); err != nil && !d.Shared {
		return refuse(c, wire.CodeUnfit, nil, fmt.Errorf("disk %s: %w. If the other host's copy is to be kept all the same, \"xlft disk invalidate %s/%s\" on this host gives this one up", d.VDev, err, s.offer.Domain, d.VDev))
	}
	repl := diskrepl.NewReplica(d.copy, c.Conn)
	if d.Shared {
		repl.Share()
	} else if d.copy.Was().Failed != "" {
		repl.CopyAll()
	}
	memory, file := s.r.Disks.Journal()
	repl.Limit(memory + file)
	if file > 0 {
		repl.SpillTo(d.copy.SpillFile(), file, memory)
	}
	if !d.Shared {
		repl.OnCompare(d.forgetSyncPoint)
	}
	if err := d.begin(repl, data); err != nil {
		code := wire.CodeUnfit
		if errors.Is(err, errTaken) {
			code = wire.CodeProtocol
		}
		return refuse(c, code, nil, fmt.Errorf("disk %s: %w", d.VDev, err))
	}
	ready := wire.DiskReady{Journal: memory + file}
	if was := d.copy.Was(); was.Failed == "" && !d.Shared {
		ready.MarkSession, ready.MarkEpoch = was.SyncPoint.Session, was.SyncPoint.Epoch
	}
	if err := c.WriteJSON(wire.TypeDiskReady, 0, ready); err != nil {
		repl.Close()
		return err
	}
	c.SetDeadline(time.Time{})
	err := repl.Run()
	s.logFailed(d, d.recordFailure())
	return err
}

// recordFailure records that the copy's storage failed, if it did. The next
// session trusts nothing that is read from it.
func (d *disk) recordFailure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ours || d.closed {
		return nil
	}
	return d.failedLocked()
}

// failedLocked is recordFailure with mu held.
func (d *disk) failedLocked() error {
	if d.repl == nil || d.Shared {
		return nil
	}
	why := d.repl.Failed()
	if why == nil {
		return nil
	}
	r := xlft.DiskRecord{State: xlft.Inconsistent, Failed: why.Error()}
	select {
	case <-d.usable:
		if d.copy.Durable() != nil {
			// The journal has what was written since the last flush that succeeded.
			r.State, r.Data = xlft.Consistent, d.data
		}
	default:
	}
	return d.copy.Record(r)
}

func (s *session) logFailed(d *disk, err error) {
	if err != nil {
		s.log.Error("record that a disk's copy failed", zap.String("vdev", d.VDev), zap.Error(err))
	}
}

// forgetSyncPoint records that the copy is not that of an earlier checkpoint any more,
// with no more than what changed since written over it.
func (d *disk) forgetSyncPoint() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ours || d.closed || d.copy.Was().SyncPoint.Epoch == 0 {
		return nil
	}
	return d.copy.Record(xlft.DiskRecord{State: xlft.Inconsistent, Failed: d.copy.Was().Failed})
}

var errTaken = errors.New("it has its connection already, or its session has ended")

// begin makes repl the only writer of the copy. If it fails the copy is what it
// was.
func (d *disk) begin(repl *diskrepl.Replica, data xlft.DataGen) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.repl != nil || d.closed {
		return errTaken
	}
	st := xlft.Inconsistent
	if d.Shared {
		st = xlft.Consistent // nothing is copied
	}
	if err := d.copy.Begin(st); err != nil {
		return err
	}
	if l := d.copy.Durable(); l != nil {
		repl.Durable(l)
	}
	d.repl, d.data = repl, data
	close(d.joined)
	return nil
}

// awaitDisks waits until all of an epoch's writes are here. If writes have to
// outlive a power cut here, the copy that they belong to must do so first.
func (s *session) awaitDisks(ctx context.Context, epoch uint64) error {
	for _, d := range s.disks {
		select {
		case <-d.joined:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := d.repl.AwaitSealed(ctx, epoch); err != nil {
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
		if epoch == 1 || d.Shared || d.copy.Durable() == nil {
			continue
		}
		select {
		case <-d.usable:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// commitDisks gives the disks an acked epoch. After the first one they are
// copies that a domain can run from.
func (s *session) commitDisks(epoch uint64) error {
	for _, d := range s.disks {
		err := d.repl.Commit(epoch)
		if err == nil && epoch == 1 && !d.Shared {
			if err = d.repl.Flush(); err == nil {
				err = d.becomeUsable()
			}
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
	}
	return nil
}

// becomeUsable records that a domain can run from the copy. The flush before may
// have taken so long that the copy is the domain's disk by now.
func (d *disk) becomeUsable() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ours || d.closed {
		return nil
	}
	if err := d.repl.Failed(); err != nil { // after the flush, and it is recorded so
		return err
	}
	if err := d.copy.Record(xlft.DiskRecord{State: xlft.Consistent, Data: d.data}); err != nil {
		return err
	}
	close(d.usable)
	return nil
}

// errFailed: the takeover failed while its disks were being finished.
var errFailed = errors.New("the takeover has failed meanwhile")

// finishDisks brings the copies to an acked epoch, makes them the domain's disks
// and closes them.
func (s *session) finishDisks(epoch uint64) error {
	for _, d := range s.disks {
		err := d.repl.Finish(epoch)
		d.mu.Lock()
		d.ours = true // also if Finish failed half-way
		if err == nil && s.isDestroying() {
			err = errFailed
		}
		if err == nil {
			// The domain is won: it is run also if this can't be recorded.
			if rerr := d.copy.Record(xlft.DiskRecord{State: xlft.UpToDate, Data: d.data.Next()}); rerr != nil {
				s.log.Error("record that a disk is the domain's", zap.String("vdev", d.VDev), zap.Error(rerr))
			}
		}
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
	}
	s.closeDisks()
	return nil
}

// takeBackDisks makes the disks copies again, after a takeover that failed.
func (s *session) takeBackDisks() {
	for _, d := range s.disks {
		if err := d.takenBack(); err != nil {
			s.log.Error("record that a disk is a copy again", zap.String("vdev", d.VDev), zap.Error(err))
		}
	}
}

// takenBack makes a disk that was to be the domain's a copy again: the takeover
// failed, and the primary may have the domain. Nothing was written to it here.
func (d *disk) takenBack() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ours || d.Shared {
		return nil
	}
	if d.repl.Failed() != nil {
		return d.failedLocked()
	}
	return d.copy.Record(xlft.DiskRecord{State: xlft.Consistent, Data: d.data})
}

// leave ends a disk's session, and records which checkpoint the copy is of, so
// that the next session need not compare the whole disk.
func (s *session) leave(d *disk, repl *diskrepl.Replica) error {
	if repl == nil {
		return nil // no connection came
	}
	// Acked writes must be on the copy, though their commit may not have begun.
	s.mu.Lock()
	acked := s.acked
	s.mu.Unlock()
	if at, _ := repl.Committed(); at < acked {
		repl.Commit(acked)
	}
	repl.Close()
	if epoch, ok := repl.Committed(); ok && repl.Flush() == nil {
		return d.copy.Record(xlft.DiskRecord{State: xlft.Consistent, SyncPoint: diskrepl.SyncPoint{Session: s.id, Epoch: epoch}, Data: d.data})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failedLocked()
}

// closeDisks closes the copies as they are.
func (s *session) closeDisks() {
	for _, d := range s.disks {
		d.mu.Lock()
		closed := d.closed
		d.closed = true
		repl, ours := d.repl, d.ours
		d.mu.Unlock()
		if closed {
			continue
		}
		if ours {
			repl.Close()
		} else if err := s.leave(d, repl); err != nil {
			s.log.Error("record the state of a disk's copy", zap.String("vdev", d.VDev), zap.Error(err))
		}
		if err := d.copy.Close(); err != nil {
			s.log.Error("close a disk's copy", zap.String("vdev", d.VDev), zap.Error(err))
		}
	}
}

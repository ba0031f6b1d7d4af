package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// A DiskHost has the backup's copies of disks.
type DiskHost interface {
	// Open opens the copy of a domain's disk, for nobody else, and leaves it as
	// it is.
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
	// Begin comes before the first write of a session. The copy is recorded as
	// one in that state, and what Durable had of it is gone.
	Begin(xlft.DiskState) error
	// Record records durably what it is. One that has a Mark, or says that it is
	// the domain's disk, takes the place of what Durable has, which goes then.
	Record(xlft.DiskRecord) error
	// SpillFile is where the part of the journal goes that has no room in
	// memory: of diskrepl.SpillSize bytes, gone after Close. Nil if Journal has
	// none.
	SpillFile() diskrepl.SpillFile
	// Durable is where the journal is kept on stable storage before an epoch
	// counts as whole; nil if that is not asked for.
	Durable() diskrepl.EpochStore
	// Close closes it.
	Close() error
}

// A standbyDisk is a disk of a replica.
type standbyDisk struct {
	wire.Disk
	copy DiskCopy

	joined chan struct{} // closed when repl is there
	usable chan struct{} // closed when the copy is recorded as one that a domain can run from

	mu   sync.Mutex
	repl *diskrepl.Replica
	over bool
	ours bool // it is the domain's disk here, and no copy any more
}

// openDisks opens the copies of all disks that the primary offered.
func (s *standby) openDisks() error {
	if len(s.offer.Disks) > 0 && s.r.Disks == nil {
		return fmt.Errorf("this host keeps no disks")
	}
	for _, d := range s.offer.Disks {
		c, err := s.r.Disks.Open(s.offer.Domain, d)
		if err != nil {
			s.closeDisks()
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
		s.disks = append(s.disks, &standbyDisk{Disk: d, copy: c, joined: make(chan struct{}), usable: make(chan struct{})})
	}
	return nil
}

// joinDisk hands a disk's connection to the replica, and keeps it until that
// ends. The error says why the disk is not to be trusted, or why the connection
// is refused.
func (s *standby) joinDisk(c *wire.Conn) error {
	var want wire.Disk
	c.SetDeadline(time.Now().Add(wire.OfferTimeout))
	if err := c.Expect(wire.TypeDisk, &want); err != nil {
		return err
	}
	var d *standbyDisk
	for _, have := range s.disks {
		if have.VDev == want.VDev {
			d = have
		}
	}
	switch {
	case d == nil:
		return refuse(c, wire.CodeProtocol, nil, fmt.Errorf("disk %.20q was not offered", want.VDev))
	case d.Disk != want || d.copy.Size() != want.Size:
		return refuse(c, wire.CodeUnfit, nil, fmt.Errorf("disk %s: %d bytes there, %d here", d.VDev, want.Size, d.copy.Size()))
	}
	repl := diskrepl.NewReplica(d.copy, c.Conn)
	if d.Shared {
		repl.Share()
	}
	memory, file := s.r.Disks.Journal()
	if file > 0 {
		repl.SpillTo(d.copy.SpillFile(), file, memory)
	}
	if err := d.begin(repl); err != nil {
		code := wire.CodeUnfit
		if errors.Is(err, errTaken) {
			code = wire.CodeProtocol
		}
		return refuse(c, code, nil, fmt.Errorf("disk %s: %w", d.VDev, err))
	}
	ready := wire.DiskReady{Journal: memory + file}
	if was := d.copy.Was(); was.State == xlft.DiskReplica && !d.Shared {
		ready.MarkSession, ready.MarkEpoch = was.Mark.Session, was.Mark.Epoch
	}
	if err := c.WriteJSON(wire.TypeDiskReady, 0, ready); err != nil {
		repl.Close()
		return err
	}
	c.SetDeadline(time.Time{})
	return repl.Run()
}

var errTaken = errors.New("it has its connection, or its session is over")

// begin makes repl the one that writes to the copy. Before that, the copy is
// what it was.
func (d *standbyDisk) begin(repl *diskrepl.Replica) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.repl != nil || d.over {
		return errTaken
	}
	st := xlft.DiskCopying
	if d.Shared {
		st = xlft.DiskReplica // nothing is copied
	}
	if err := d.copy.Begin(st); err != nil {
		return err
	}
	if l := d.copy.Durable(); l != nil {
		repl.Durable(l)
	}
	d.repl = repl
	close(d.joined)
	return nil
}

// awaitDisks waits until all of an epoch's writes are here. If they are to
// outlive this host, so has the disk that they belong to.
func (s *standby) awaitDisks(ctx context.Context, epoch uint64) error {
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
func (s *standby) commitDisks(epoch uint64) error {
	for _, d := range s.disks {
		err := d.repl.Commit(epoch)
		if err == nil && epoch == 1 && !d.Shared {
			if err = d.copy.Flush(); err == nil {
				err = d.becomeUsable()
			}
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
	}
	return nil
}

// becomeUsable records that a domain can run from the copy. The flush before it
// may have taken so long that it is the domain's disk by now.
func (d *standbyDisk) becomeUsable() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ours || d.over {
		return nil
	}
	if err := d.copy.Record(xlft.DiskRecord{State: xlft.DiskReplica}); err != nil {
		return err
	}
	close(d.usable)
	return nil
}

// finishDisks makes the disks those of an acked epoch, for the domain to run
// from, and lets go of them.
func (s *standby) finishDisks(epoch uint64) error {
	for _, d := range s.disks {
		err := d.repl.Finish(epoch)
		d.mu.Lock()
		d.ours = true // or half of it
		if err == nil {
			err = d.copy.Record(xlft.DiskRecord{State: xlft.DiskActive})
		}
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.VDev, err)
		}
	}
	s.closeDisks()
	return nil
}

// leave ends a disk's session, and records what the copy is consistent as
// of, so that the next session need not compare all of it.
func (s *standby) leave(d *standbyDisk, repl *diskrepl.Replica) error {
	if repl == nil {
		return nil // nothing came
	}
	// What was acked is to be there, though nobody may have begun with it.
	s.mu.Lock()
	acked := s.acked
	s.mu.Unlock()
	if at, _ := repl.Committed(); at < acked {
		repl.Commit(acked)
	}
	repl.Close()
	epoch, ok := repl.Committed()
	if !ok {
		return nil
	}
	if err := d.copy.Flush(); err != nil {
		return err
	}
	return d.copy.Record(xlft.DiskRecord{State: xlft.DiskReplica, Mark: diskrepl.SyncPoint{Session: s.session, Epoch: epoch}})
}

// closeDisks lets go of the disks as they are.
func (s *standby) closeDisks() {
	for _, d := range s.disks {
		d.mu.Lock()
		over := d.over
		d.over = true
		repl, ours := d.repl, d.ours
		d.mu.Unlock()
		if over {
			continue
		}
		if ours {
			repl.Close()
		} else if err := s.leave(d, repl); err != nil {
			s.log.Error("record what the copy of a disk is: " + err.Error())
		}
		if err := d.copy.Close(); err != nil {
			s.log.Error("close the copy of a disk: " + err.Error())
		}
	}
}

// Package diskcopy keeps this host's copies of other hosts' disks: it opens
// them for the receiver, records what each is good for, and promotes them when
// their primary is lost.
//
// The one rule a caller must know: a copy's record on stable storage is never
// better than the copy. A copy is recorded as consistent only when its disk has
// that state on stable storage, or can be brought to it by its journal.
package diskcopy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"xlft/diskrepl"
	"xlft/diskrepl/blockfile"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/store"
	"xlft/xlft/wire"
)

// Copies are this host's copies of other hosts' disks. They are a
// backup.DiskHost.
type Copies struct {
	// Config returns the configuration of the moment.
	Config func() *config.Config
	Store  store.Dir
	// Boot names this boot of the host, as records of ownership do. Only Promote
	// uses it.
	Boot string
}

// Journal returns how many bytes of writes each disk may hold back, in memory
// and in a file.
func (c *Copies) Journal() (memory, file int64) {
	return int64(c.Config().DiskJournal), int64(c.Config().DiskJournalFile)
}

type diskCopy struct {
	*blockfile.File
	host         *Copies
	domain, vdev string
	was          xlft.DiskRecord
	durable      bool     // as configured when the session began
	sector       int      // of the primary's disk
	spill        *os.File // has no name; nil if the configuration asks for none
}

func (c *diskCopy) SpillFile() diskrepl.SpillFile { return c.spill }

func (c *diskCopy) Close() error {
	err := c.File.Close()
	if c.spill != nil {
		err = errors.Join(err, c.spill.Close())
	}
	return err
}

// spillFile returns a file without a name, whose space is allocated.
func (c *Copies) spillFile() (*os.File, error) {
	dir := filepath.Join(c.Config().StateDir, "journal")
	if err := diskrepl.MakeDir(dir, 0o700); err != nil { // a durable journal may be beside it
		return nil, err
	}
	f, err := os.CreateTemp(dir, "disk-*")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	if err := unix.Fallocate(int(f.Fd()), 0, 0, diskrepl.SpillSize(int64(c.Config().DiskJournalFile))); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal file of %d bytes (disk_journal_file) in %s: %w", c.Config().DiskJournalFile, dir, err)
	}
	return f, nil
}

func (c *diskCopy) Durable() diskrepl.EpochStore {
	if !c.durable {
		return nil
	}
	return c.host.journal(c.domain, c.vdev)
}

// Begin records the copy's state and then removes its old journal, in this
// order: a copy that is recorded as consistent may need its journal to be
// consistent.
func (c *diskCopy) Begin(st xlft.DiskState) error {
	r := xlft.DiskRecord{State: st, Failed: c.was.Failed}
	if st == xlft.Inconsistent {
		r.SyncPoint = c.was.SyncPoint
	}
	if err := c.Record(r); err != nil {
		return err
	}
	return c.host.journal(c.domain, c.vdev).Clear()
}

func (c *diskCopy) Was() xlft.DiskRecord { return c.was }

func (c *diskCopy) Record(r xlft.DiskRecord) error {
	r.Sector = c.sector
	return c.host.record(c.domain, c.vdev, r)
}

// record records what a copy is, and removes a journal that is not needed then.
func (c *Copies) record(domain, vdev string, r xlft.DiskRecord) error {
	if err := c.Store.SaveDisk(domain, vdev, r); err != nil {
		return err
	}
	if r.State == xlft.UpToDate || r.SyncPoint.Epoch > 0 {
		return c.journal(domain, vdev).Clear()
	}
	return nil
}

// openConfigured opens a disk as its configuration says.
func openConfigured(d config.Disk) (*blockfile.File, error) {
	if d.Shared {
		return blockfile.OpenShared(d.Path)
	}
	return blockfile.Open(d.Path, d.Direct)
}

// find opens the copy of a disk, which must be as the primary describes it.
func (c *Copies) find(domain string, d wire.Disk) (*blockfile.File, error) {
	conf, err := c.Config().For(domain).Disk(d.VDev)
	if err != nil {
		return nil, err
	}
	if conf.Shared != d.Shared {
		kind := map[bool]string{false: "mirror", true: "shared"}
		return nil, fmt.Errorf("its storage is %q there and %q here", kind[d.Shared], kind[conf.Shared])
	}
	if want := xlft.Sector(d.Sector); conf.Sector != 0 && conf.Sector != want {
		return nil, fmt.Errorf("its sectors are of %d bytes there, and of %d here: set sector_size = %d in [domain.%s.disk.%s] on this host, or leave it out", want, conf.Sector, want, domain, d.VDev)
	}
	f, err := openConfigured(conf)
	if err != nil {
		return nil, err
	}
	if f.Size() != d.Size {
		f.Close()
		return nil, fmt.Errorf("%s has %d bytes, the primary's has %d", conf.Path, f.Size(), d.Size)
	}
	return f, nil
}

// Open opens the copy of a domain's disk for one session. It fails if the copy
// is in use, or does not match d.
func (c *Copies) Open(domain string, d wire.Disk) (backup.DiskCopy, error) {
	f, err := c.find(domain, d)
	if err != nil {
		return nil, err
	}
	v := &diskCopy{File: f, host: c, domain: domain, vdev: d.VDev, durable: c.Config().DurableAck, sector: xlft.Sector(d.Sector)}
	if v.was, err = c.Store.LoadDisk(domain, d.VDev); err != nil {
		f.Close()
		return nil, err
	}
	if c.Config().DiskJournalFile > 0 {
		if v.spill, err = c.spillFile(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return v, nil
}

// durable returns the journal of a disk on stable storage.
func (c *Copies) journal(domain, vdev string) diskrepl.EpochDir {
	return diskrepl.EpochDir(filepath.Join(c.Config().StateDir, "journal", xlft.FileName(domain)+","+xlft.FileName(vdev)))
}

// Check returns why a disk could not be opened now, or nil.
func (c *Copies) Check(domain string, d wire.Disk) error {
	f, err := c.find(domain, d)
	if err != nil {
		return err
	}
	return f.Close()
}

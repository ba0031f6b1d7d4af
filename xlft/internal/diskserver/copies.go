package diskserver

import (
	"errors"
	"fmt"
	"net/url"
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

// Copies are this host's copies of other hosts' disks: an xlft.DiskHost.
type Copies struct {
	Config *config.Config
	Store  store.Dir
}

// Journal is xlft.DiskHost's.
func (c *Copies) Journal() (memory, file int64) {
	return int64(c.Config.DiskJournal), int64(c.Config.DiskJournalFile)
}

type diskCopy struct {
	*blockfile.File
	host         *Copies
	domain, vdev string
	was          xlft.DiskRecord
	spill        *os.File // without a name; nil if there is none
}

func (c *diskCopy) SpillFile() diskrepl.SpillFile { return c.spill }

func (c *diskCopy) Close() error {
	err := c.File.Close()
	if c.spill != nil {
		err = errors.Join(err, c.spill.Close())
	}
	return err
}

// spillFile returns a file without a name whose space is there.
func (c *Copies) spillFile() (*os.File, error) {
	dir := filepath.Join(c.Config.StateDir, "journal")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "disk-*")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	if err := unix.Fallocate(int(f.Fd()), 0, 0, diskrepl.SpillSize(int64(c.Config.DiskJournalFile))); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal file of %d bytes (disk_journal_file) in %s: %w", c.Config.DiskJournalFile, dir, err)
	}
	return f, nil
}

func (c *diskCopy) Durable() diskrepl.EpochStore {
	if !c.host.Config.DurableAck {
		return nil
	}
	return c.host.durable(c.domain, c.vdev)
}

// Begin is xlft.DiskCopy's. The record comes first: a replica without the
// journal that it needs would be torn.
func (c *diskCopy) Begin(st xlft.DiskState) error {
	if err := c.Record(xlft.DiskRecord{State: st}); err != nil {
		return err
	}
	return c.host.durable(c.domain, c.vdev).Clear()
}

func (c *diskCopy) Was() xlft.DiskRecord { return c.was }

func (c *diskCopy) Record(r xlft.DiskRecord) error { return c.host.record(c.domain, c.vdev, r) }

// record records what a copy is, which may make its journal needless.
func (c *Copies) record(domain, vdev string, r xlft.DiskRecord) error {
	if err := c.Store.SaveDisk(domain, vdev, r); err != nil {
		return err
	}
	if r.State == xlft.DiskActive || r.Mark.Epoch > 0 {
		return c.durable(domain, vdev).Clear()
	}
	return nil
}

func openConfigured(d config.Disk) (*blockfile.File, error) {
	if d.Shared {
		return blockfile.OpenShared(d.Path)
	}
	return blockfile.Open(d.Path, d.Direct)
}

// find opens a copy, to look at it or to use it.
func (c *Copies) find(domain string, d wire.Disk) (*blockfile.File, error) {
	conf, err := c.Config.For(domain).Disk(d.VDev)
	if err != nil {
		return nil, err
	}
	if conf.Shared != d.Shared {
		kind := map[bool]string{false: "mirror", true: "shared"}
		return nil, fmt.Errorf("its storage is %q there and %q here", kind[d.Shared], kind[conf.Shared])
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

// Open is xlft.DiskHost's.
func (c *Copies) Open(domain string, d wire.Disk) (backup.DiskCopy, error) {
	f, err := c.find(domain, d)
	if err != nil {
		return nil, err
	}
	v := &diskCopy{File: f, host: c, domain: domain, vdev: d.VDev}
	if v.was, err = c.Store.LoadDisk(domain, d.VDev); err != nil {
		f.Close()
		return nil, err
	}
	if c.Config.DiskJournalFile > 0 {
		if v.spill, err = c.spillFile(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return v, nil
}

func (c *Copies) durable(domain, vdev string) diskrepl.EpochDir {
	return diskrepl.EpochDir(filepath.Join(c.Config.StateDir, "journal", url.PathEscape(domain)+","+url.PathEscape(vdev)))
}

// Check says why a disk could not be opened now; nil if it could.
func (c *Copies) Check(domain string, d wire.Disk) error {
	f, err := c.find(domain, d)
	if err != nil {
		return err
	}
	return f.Close()
}

package diskserver

import (
	"fmt"

	"xlft/diskrepl/nbd"
	"xlft/xlft"
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
func (c *Copies) Journal() int64 { return int64(c.Config.DiskJournal) }

type diskCopy struct {
	*nbd.File
	store        store.Dir
	domain, vdev string
}

func (c *diskCopy) SetState(st xlft.DiskState) error {
	return c.store.SaveDisk(c.domain, c.vdev, st)
}

// find opens a copy, to look at it or to use it.
func (c *Copies) find(domain string, d wire.Disk) (*nbd.File, error) {
	conf, ok := c.Config.For(domain).Disks[d.VDev]
	if !ok {
		return nil, fmt.Errorf("the configuration has no [domain.%s.disk.%s]", domain, d.VDev)
	}
	f, err := nbd.OpenFile(conf.Path, conf.Direct, false)
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
func (c *Copies) Open(domain string, d wire.Disk) (xlft.DiskCopy, error) {
	f, err := c.find(domain, d)
	if err != nil {
		return nil, err
	}
	v := &diskCopy{f, c.Store, domain, d.VDev}
	if err := v.SetState(xlft.DiskCopying); err != nil {
		f.Close()
		return nil, err
	}
	return v, nil
}

// Check says why a disk could not be opened now; nil if it could.
func (c *Copies) Check(domain string, d wire.Disk) error {
	f, err := c.find(domain, d)
	if err != nil {
		return err
	}
	return f.Close()
}

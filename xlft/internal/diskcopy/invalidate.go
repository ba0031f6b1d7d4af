package diskcopy

import (
	"errors"

	"xlft/xlft"
)

// Invalidate gives up what this host's copy of a disk has: the next session may
// overwrite it, whatever the record said before. It fails if the copy is in use.
func (c *Copies) Invalidate(domain, vdev string) error {
	disk, err := c.Config().For(domain).Disk(vdev)
	if err != nil {
		return err
	}
	if disk.Shared {
		return errors.New("its storage is shared: there is one copy only")
	}
	f, err := openConfigured(disk) // fails if a session or a domain uses the disk
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := c.Store.LoadDisk(domain, vdev)
	if err != nil {
		return err
	}
	// What failed is not to be trusted, whatever else is given up.
	return c.record(domain, vdev, xlft.DiskRecord{State: xlft.Inconsistent, Failed: r.Failed, Sector: r.Sector})
}

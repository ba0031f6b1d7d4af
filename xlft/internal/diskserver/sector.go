package diskserver

import (
	"bytes"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A sectored disk has sectors of its own, and content that may depend on them.
type sectored interface {
	Name() string
	Size() int64
	Sector() int64
	ReadAt(p []byte, off int64) error
}

// chooseSector decides the size of the sectors that the domain sees, and records it
// where the storage does not say it.
func (s *Server) chooseSector(d *disk, conf config.Disk, rec xlft.DiskRecord) error {
	if d.sector == 0 {
		var err error
		if d.sector, err = sectorOf(d.file, conf, rec); err != nil {
			return fmt.Errorf("%w, in [domain.%s.disk.%s]", err, s.Config.Name, d.vdev)
		}
	}
	switch {
	case rec.Sector == d.sector, rec.Sector == 0 && d.sector == 512 && d.file.Sector() == 512:
		return nil
	case rec.Sector != 0:
		s.Log.Warn("a disk gets sectors of another size: partitions that were made before are not found", zap.String("vdev", d.vdev), zap.Int("before", rec.Sector), zap.Int("now", d.sector))
	}
	s.records.Lock()
	defer s.records.Unlock()
	r, err := s.Record(d.vdev)
	if err == nil {
		r.Sector = d.sector
		err = s.SaveRecord(d.vdev, r)
	}
	return err
}

// sectorOf returns the size of the sectors that a domain is to see. They belong to
// what the disk has, not to the storage: partition tables count in them. So they
// stay what they were: as configured, as recorded, or 512 if xlft served the disk
// before it recorded that. A disk that xlft never served has its storage's; if these
// are not 512, an earlier version may have served it all the same.
func sectorOf(f sectored, conf config.Disk, rec xlft.DiskRecord) (int, error) {
	own := int(f.Sector())
	n, known := own, true
	switch {
	case conf.Sector != 0:
		n = conf.Sector
	case rec.Sector != 0:
		n = rec.Sector
	case rec.State != "" || rec.Data.ID != "":
		n = 512
	case own != 512:
		var err error
		if n, known, err = sectorOfTable(f); err != nil {
			return 0, err
		}
	}
	switch {
	case !known:
		return 0, fmt.Errorf("%s has sectors of %d bytes, and nothing says whether the domain's partitions were made for these: say sector_size = %d if the domain used it without xlft until now, or sector_size = 512 if xlft served it", f.Name(), own, own)
	case n > 512 && f.Size()%int64(n) != 0:
		return 0, fmt.Errorf("%s has %d bytes, no multiple of its sectors' %d: give it another size on both hosts, or say sector_size = 512", f.Name(), f.Size(), n)
	}
	return n, nil
}

// sectorOfTable looks for a partition table (GPT) in the second sector. A disk that
// begins with nothing has none, and takes its storage's sectors.
func sectorOfTable(f sectored) (n int, known bool, err error) {
	b := make([]byte, min(f.Size(), 64<<10))
	if err := f.ReadAt(b, 0); err != nil {
		return 0, false, err
	}
	for _, size := range []int{512, 4096} {
		if len(b) > size && bytes.HasPrefix(b[size:], []byte("EFI PART")) {
			return size, true, nil
		}
	}
	return int(f.Sector()), len(bytes.Trim(b, "\x00")) == 0, nil
}

// knowsSectors returns an error if a backup with these features would run the domain
// from a disk with sectors of another size.
func knowsSectors(n int, features []string) error {
	if n == xlft.Sector(0) || slices.Contains(features, wire.FeatureSectors) {
		return nil
	}
	return fmt.Errorf("it has sectors of %d bytes, and the backup's xlft knows 512 only: the domain would not find its partitions there. Install this version of xlft on the backup", n)
}

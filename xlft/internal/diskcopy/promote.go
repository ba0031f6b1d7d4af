package diskcopy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"xlft/diskrepl"
	"xlft/diskrepl/blockfile"
	"xlft/xlft"
	"xlft/xlft/config"
)

// SharedJournal says what Promote does with a journal of writes to storage that
// another host sees too.
type SharedJournal int

const (
	AskShared     SharedJournal = iota // refuse to promote
	ReplayShared                       // replay the journal: the other host did not run the domain any further
	DiscardShared                      // discard the journal: the other host ran the domain on alone, or the journal is damaged
)

// Promoted is the result of Promote for one disk.
type Promoted struct {
	VDev  string
	Epoch uint64 // that the journal brought the disk to; 0 if the disk was left as it was
}

// A promotion is one disk of a Promote.
type promotion struct {
	config.Disk
	record  xlft.DiskRecord
	journal diskrepl.EpochDir
	file    *blockfile.File
	oldest  uint64 // epoch in the journal; 0 if it is not used
	newest  uint64 // epoch in the journal, or of the record; 0 if it is not known
	discard bool   // the journal is discarded
}

// Promote makes a copy the disk that the domain runs from: the disk vdev, or
// with vdev "" all of the domain's disks. Journals on stable storage bring them
// to the newest epoch that all of them have. Promote can be repeated if it was
// interrupted.
func (c *Copies) Promote(domain, vdev string, shared SharedJournal) (done []Promoted, err error) {
	conf := c.Config().For(domain)
	vdevs := slices.Sorted(maps.Keys(conf.Disks))
	if vdev != "" {
		vdevs = []string{vdev}
	}
	var all []*promotion
	defer func() {
		for _, p := range all {
			err = errors.Join(err, p.file.Close())
		}
	}()
	for _, v := range vdevs {
		p, err := c.promotion(conf, v, shared)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", v, err)
		}
		if p != nil {
			all = append(all, p)
		}
	}
	switch {
	case len(vdevs) == 0:
		return nil, fmt.Errorf("the configuration has no [domain.%s.disk.…]", domain)
	case len(all) == 0:
		// Unless it is not known whether the backup took the domain over.
		if settled, err := c.settle(domain); err != nil || settled {
			return nil, err
		}
		return nil, errors.New("the domain runs from it already")
	}
	epoch, err := common(all)
	if err != nil {
		return nil, err
	}
	// Epochs that not all disks have are removed first, so that a repeated
	// Promote comes to the same epoch.
	for _, p := range all {
		if p.oldest > 0 {
			if err := diskrepl.Cut(p.journal, epoch); err != nil {
				return nil, fmt.Errorf("disk %s: %w", p.VDev, err)
			}
		}
	}
	for _, p := range all {
		d := Promoted{VDev: p.VDev}
		if p.oldest > 0 && p.oldest <= epoch {
			if err := diskrepl.Replay(p.file, p.journal, epoch); err != nil {
				return nil, fmt.Errorf("disk %s: %w", p.VDev, err)
			}
			d.Epoch = epoch
		}
		done = append(done, d)
	}
	for _, p := range all {
		// What a receiver that was killed left in the page cache may not reach the
		// storage.
		if err := p.file.Flush(); err != nil {
			return nil, fmt.Errorf("disk %s: %w", p.VDev, err)
		}
	}
	for _, p := range all {
		// The next copy to storage that failed is of all chunks, though the journal has
		// repaired it.
		r := xlft.DiskRecord{State: xlft.UpToDate, Failed: p.record.Failed, Data: p.record.Data.Next(), Sector: p.record.Sector}
		if err := c.record(domain, p.VDev, r); err != nil {
			return nil, fmt.Errorf("disk %s: %w", p.VDev, err)
		}
	}
	return done, nil
}

// settle records an operator's word that a domain is this host's, if the record
// leaves open whether the backup took it over, and reports whether it did.
func (c *Copies) settle(domain string) (bool, error) {
	o, err := c.Store.Load(domain)
	if err != nil || o.Role != xlft.HostPrimary || !o.Exposed && !o.Handed || strings.HasPrefix(o.Instance, c.Boot+"/") {
		return false, err
	}
	o.Exposed, o.Handed = false, false
	return true, c.Store.Save(domain, o)
}

// promotion opens a copy and its journal. It returns nil if the domain runs
// from the disk already.
func (c *Copies) promotion(conf config.Domain, vdev string, shared SharedJournal) (*promotion, error) {
	disk, err := conf.Disk(vdev)
	if err != nil {
		return nil, err
	}
	p := &promotion{Disk: disk, journal: c.journal(conf.Name, vdev)}
	if p.record, err = c.Store.LoadDisk(conf.Name, vdev); err != nil {
		return nil, err
	}
	switch p.record.State {
	case xlft.Inconsistent:
		if p.record.Failed != "" {
			return nil, fmt.Errorf("its storage failed (%s), and no copy was completed since: it is inconsistent", p.record.Failed)
		}
		return nil, errors.New("its first copy was never completed: it is inconsistent")
	case xlft.UpToDate, "":
		return nil, nil
	}
	// This fails if a session or a domain uses the disk.
	if p.file, err = openConfigured(disk); err != nil {
		return nil, err
	}
	if err := p.findEpochs(shared); err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	return p, nil
}

// findEpochs finds out which epochs a copy can be brought to.
func (p *promotion) findEpochs(shared SharedJournal) error {
	if p.record.State != xlft.Consistent {
		return nil
	}
	p.newest = p.record.SyncPoint.Epoch
	p.discard = p.Shared && shared == DiscardShared
	left, err := p.journal.Any()
	if err == nil && !left && p.record.Failed != "" {
		err = fmt.Errorf("its storage failed (%s), and it has no journal: it is inconsistent", p.record.Failed)
	}
	if err != nil || !left || p.discard {
		return err
	}
	oldest, newest, err := diskrepl.Newest(p.journal, p.file.Size())
	if errors.Is(err, diskrepl.ErrJournalDamaged) {
		if shared == DiscardShared {
			p.discard = true
			return nil
		}
		return fmt.Errorf("%w; the copy may be torn in the middle of a checkpoint. If there is no other, --discard takes it as it is", err)
	}
	if err != nil || newest == 0 {
		return err
	}
	if p.Shared && shared == AskShared {
		return fmt.Errorf("its storage is shared, and the journal here has checkpoint %d. If the other host ran the domain on alone after that, to write it now would damage the disk: say --replay if it did not, --discard if it did", newest)
	}
	p.oldest, p.newest = oldest, newest
	return nil
}

// common returns the newest epoch that all copies can be brought to, or 0 if
// the epoch of none is known.
func common(all []*promotion) (epoch uint64, err error) {
	session := ""
	for _, p := range all {
		if p.newest > 0 && (epoch == 0 || p.newest < epoch) {
			epoch = p.newest
		}
	}
	if epoch == 0 {
		return 0, nil
	}
	for _, p := range all {
		if p.record.State == xlft.Consistent && p.newest == 0 && !p.discard {
			epoch = 1 // with an empty journal the disk has the first copy
		}
	}
	for _, p := range all {
		at := p.oldest // the disk may have this one already
		if at == 0 {
			at = p.newest + 1
		}
		mark := p.record.SyncPoint.Session
		if at > epoch+1 || mark != "" && session != "" && mark != session {
			return 0, fmt.Errorf("disk %s is of another checkpoint than the others, and can't be brought to theirs: promote one by one (DOMAIN/VDEV) to take them as they are", p.VDev)
		}
		if mark != "" {
			session = mark
		}
	}
	return epoch, nil
}

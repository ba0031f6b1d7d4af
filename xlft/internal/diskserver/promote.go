package diskserver

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"xlft/diskrepl"
	"xlft/diskrepl/blockfile"
	"xlft/xlft"
	"xlft/xlft/config"
)

// SharedJournal is what is done with a journal of writes to storage that another
// host sees too.
type SharedJournal int

const (
	AskShared     SharedJournal = iota // refuse to promote
	ReplayShared                       // write what it has: the other host ran the domain no further
	DiscardShared                      // forget it: the other host ran the domain on alone
)

// Promoted is what became of a copy.
type Promoted struct {
	VDev  string
	Epoch uint64 // that it was brought to by its journal; 0: it is as it was
}

// A promotion is one disk of it.
type promotion struct {
	config.Disk
	record  xlft.DiskRecord
	journal diskrepl.EpochDir
	file    *blockfile.File
	oldest  uint64 // epoch in the journal
	newest  uint64 // epoch in the journal, or of the record; 0: none
	discard bool   // the journal is forgotten
}

// Promote makes copies the disks that the domain runs from: the one that is
// named, or with vdev "" all of the domain's. Journals on stable storage bring
// them to the newest epoch that all of them have. It can be called again if it
// was interrupted.
func (c *Copies) Promote(domain, vdev string, shared SharedJournal) (done []Promoted, err error) {
	conf := c.Config.For(domain)
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
		return nil, errors.New("the domain runs from it already")
	}
	epoch, err := common(all)
	if err != nil {
		return nil, err
	}
	// What not all of them have goes first, so that who begins again comes to
	// the same epoch.
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
		if err := c.record(domain, p.VDev, xlft.DiskRecord{State: xlft.DiskActive}); err != nil {
			return nil, fmt.Errorf("disk %s: %w", p.VDev, err)
		}
	}
	return done, nil
}

// promotion looks at a copy; nil: the domain runs from it already.
func (c *Copies) promotion(conf config.Domain, vdev string, shared SharedJournal) (*promotion, error) {
	disk, err := conf.Disk(vdev)
	if err != nil {
		return nil, err
	}
	p := &promotion{Disk: disk, journal: c.durable(conf.Name, vdev)}
	if p.record, err = c.Store.LoadDisk(conf.Name, vdev); err != nil {
		return nil, err
	}
	switch p.record.State {
	case xlft.DiskCopying:
		return nil, errors.New("its first copy was never completed: it is inconsistent")
	case xlft.DiskActive, "":
		return nil, nil
	}
	// A session that has it, or a domain, is in the way.
	if p.file, err = openConfigured(disk); err != nil {
		return nil, err
	}
	if err := p.look(shared); err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	return p, nil
}

// look finds out of which epoch a replica is.
func (p *promotion) look(shared SharedJournal) error {
	if p.record.State != xlft.DiskReplica {
		return nil
	}
	p.newest = p.record.Mark.Epoch
	p.discard = p.Shared && shared == DiscardShared
	left, err := p.journal.Any()
	if err != nil || !left || p.discard {
		return err
	}
	oldest, newest, err := diskrepl.Newest(p.journal, p.file.Size())
	if err != nil || newest == 0 {
		return err
	}
	if p.Shared && shared == AskShared {
		return fmt.Errorf("its storage is shared, and the journal here has checkpoint %d. If the other host ran the domain on alone after that, to write it now would damage the disk: say --replay if it did not, --discard if it did", newest)
	}
	p.oldest, p.newest = oldest, newest
	return nil
}

// common returns the newest epoch that all copies can be brought to; 0 if none
// of them is known by its epoch.
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
		if p.record.State == xlft.DiskReplica && p.newest == 0 && !p.discard {
			epoch = 1 // whose journal has nothing has the first copy
		}
	}
	for _, p := range all {
		at := p.oldest // the disk may have this one already
		if at == 0 {
			at = p.newest + 1
		}
		mark := p.record.Mark.Session
		if at > epoch+1 || mark != "" && session != "" && mark != session {
			return 0, fmt.Errorf("disk %s is of another checkpoint than the others, and can't be brought to theirs: promote one by one (DOMAIN/VDEV) to take them as they are", p.VDev)
		}
		if mark != "" {
			session = mark
		}
	}
	return epoch, nil
}

package xlft_test

import (
	"errors"
	"sync/atomic"
	"syscall"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
)

// A refusal is what of a host refuses its service for a while: the kernel, the
// hypervisor's library, a disk.
type refusal = int32

const (
	refusesNothing refusal = iota
	refusesGate            // letting packets out
	refusesGuest           // resuming, pausing, destroying domains
	refusesLooks           // listing domains
	refusesReads           // reading a receiver's records
	refusals
)

var refusalNames = [...]string{"nothing", "to let packets out", "to resume, pause or destroy a domain", "to list domains", "to read a receiver's record"}

var errRefused = errors.New("busy")

// refusing is a host that may refuse something.
type refusing struct{ what atomic.Int32 }

func (r *refusing) err(what refusal) error {
	if r.what.Load() == what {
		return errRefused
	}
	return nil
}

type refusingGate struct {
	xlft.Gate
	r *refusing
}

func (g refusingGate) try(f func() error) error {
	if err := g.r.err(refusesGate); err != nil {
		return err
	}
	return f()
}

func (g refusingGate) Release(epoch uint64) error {
	return g.try(func() error { return g.Gate.Release(epoch) })
}
func (g refusingGate) ReleaseAll() error { return g.try(g.Gate.ReleaseAll) }
func (g refusingGate) Close() error      { return g.try(g.Gate.Close) }

type refusingGuest struct {
	xlft.Guest
	r *refusing
}

func (g refusingGuest) try(f func() error) error {
	if err := g.r.err(refusesGuest); err != nil {
		return err
	}
	return f()
}

func (g refusingGuest) Resume() error  { return g.try(g.Guest.Resume) }
func (g refusingGuest) Pause() error   { return g.try(g.Guest.Pause) }
func (g refusingGuest) Unpause() error { return g.try(g.Guest.Unpause) }
func (g refusingGuest) Destroy() error { return g.try(g.Guest.Destroy) }

type refusingRestorer struct {
	backup.Restorer
	r *refusing
}

func (x refusingRestorer) Find(domain, uuid string) (backup.Found, error) {
	if err := x.r.err(refusesLooks); err != nil {
		return backup.FoundNothing, err
	}
	return x.Restorer.Find(domain, uuid)
}

type refusingStore struct {
	xlft.Store
	r *refusing
}

func (x refusingStore) Load(domain string) (xlft.Ownership, error) {
	if x.r.err(refusesReads) != nil {
		return xlft.Ownership{}, syscall.EIO
	}
	return x.Store.Load(domain)
}

// paused are domains that an operator has paused, as xl pause does.
type paused map[*simxen.Domain]bool

func (p paused) pause(d *simxen.Domain) {
	if !p[d] {
		p[d] = true
		d.Freeze()
	}
}

func (p paused) unpause() {
	for d := range p {
		d.Thaw()
		delete(p, d)
	}
}

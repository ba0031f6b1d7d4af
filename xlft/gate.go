package xlft

import (
	"context"
	"errors"

	"xlft/diskrepl"
)

// A Gate holds back what a domain gives to the outside, by epoch: packets, or
// writes to a disk that others see.
type Gate interface {
	// Seal ends the open epoch, whose number is given, while the domain is
	// suspended. The first Seal starts the holding.
	Seal(epoch uint64) error
	// Release lets a sealed epoch out.
	Release(epoch uint64) error
	// Drain waits until all that the suspended domain sent has left, so that
	// nothing of it is missing, or gets in the way, when the domain runs on
	// elsewhere. The sealed epoch has been released.
	Drain(ctx context.Context) error
	// ReleaseAll lets everything out and stops holding: this host is the only
	// runner.
	ReleaseAll() error
	// Discard drops what is held and takes the gate down: the domain was
	// destroyed here and runs elsewhere.
	Discard() error
	// Close takes the gate down without losing anything.
	Close() error
	// Held returns how much memory is taken by what waits, and how much may be,
	// in bytes; limit is 0 if nothing can wait. From held >= limit on the domain
	// must be kept from sending: the gate itself drops nothing there. An error
	// says that the gate does not hold what the domain sends, or has dropped
	// some of it, or that it can't be known; the numbers may be good even then.
	Held() (held, limit uint64, err error)
}

// Disks are the disks of a domain at the primary: a Gate, since what is written
// in an epoch counts only with the epoch's checkpoint, and the replication of
// what is written.
type Disks interface {
	Gate
	// Replicate copies the disks to the backup, in the session of that id, and
	// returns when both sides are the same. From then on what is written is
	// sent. Lost is called, at most once, if the replication breaks later.
	Replicate(ctx context.Context, session string, lost func(error)) error
	// End ends the replication: what is written goes to this host alone.
	End()
	// Progress returns how far the first copies are.
	Progress() []DiskProgress
}

// DiskProgress is how far the first copy of a disk is.
type DiskProgress struct {
	VDev string `json:"vdev"`
	diskrepl.Progress
}

// Gates are all gates of a domain as one Gate: network and disks end their
// epochs together.
type Gates struct {
	Net   Gate
	Disks Disks // nil if the domain has none
}

// Seal seals the network first. If that fails the disks' epoch stays open.
func (g Gates) Seal(epoch uint64) error {
	if err := g.Net.Seal(epoch); err != nil || g.Disks == nil {
		return err
	}
	return g.Disks.Seal(epoch)
}

// Release releases an epoch at every gate, also if one of them fails.
func (g Gates) Release(epoch uint64) error {
	return g.each(func(gate Gate) error { return gate.Release(epoch) })
}

// Drain drains every gate.
func (g Gates) Drain(ctx context.Context) error {
	return g.each(func(gate Gate) error { return gate.Drain(ctx) })
}

// ReleaseAll opens every gate, also if one of them fails.
func (g Gates) ReleaseAll() error { return g.each(Gate.ReleaseAll) }

// Discard discards at the disks first: their copies here are outdated from now
// on, and have to be known as such whatever happens next.
func (g Gates) Discard() error {
	var err error
	if g.Disks != nil {
		err = g.Disks.Discard()
	}
	return errors.Join(err, g.Net.Discard())
}

// Close takes every gate down.
func (g Gates) Close() error { return g.each(Gate.Close) }

// Held returns what the gate that is fullest holds, in proportion to its limit.
func (g Gates) Held() (held, limit uint64, err error) {
	held, limit, err = g.Net.Held()
	if g.Disks == nil {
		return held, limit, err
	}
	h, l, derr := g.Disks.Held()
	if derr == nil && (limit == 0 || h*limit > held*l) {
		held, limit = h, l
	}
	return held, limit, errors.Join(err, derr)
}

// each calls f for the network and then for the disks.
func (g Gates) each(f func(Gate) error) error {
	err := f(g.Net)
	if g.Disks != nil {
		err = errors.Join(err, f(g.Disks))
	}
	return err
}

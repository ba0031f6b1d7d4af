package xlft_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl"
	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/wire"
)

// A variant is xlft with one of its promises broken on purpose.
type variant struct {
	net      func(xlft.Gate) xlft.Gate
	disks    func(*simxen.Disks) xlft.Disks
	arbiter  func(xlft.Arbiter) xlft.Arbiter
	torn     bool          // the replica leaves out a part of each checkpoint
	patience time.Duration // silence the primary accepts, if not simSilence
	copy     func(backup.DiskCopy) backup.DiskCopy
	leak     bool // the backup's disk gets every write at once
	twice    bool // a journal is replayed twice, out of order
	storage  storage
	noLimit  bool // no limit on the time from a trigger to the ack
	noFlush  bool // the domain never flushes its disk
	guest    func(xlft.Guest) xlft.Guest
	store    func(xlft.Store) xlft.Store // A's records
	pages    int                         // of the domain, if not 12
	memory   int64                       // for a checkpoint, if not 1 MiB
	slow     time.Duration               // that the replica takes for a checkpoint
	dial     func(wire.Dialer) wire.Dialer
	faults   []int     // the only faults, if any are given
	mode     xlft.Mode // "": by the seed
	pacing   func(*xlft.Pacing)
	events   func(<-chan struct{}) <-chan struct{}
}

// storage is the kind of the domain's disk.
type storage int

const (
	bySeed storage = iota
	mirrored
	shared
)

// earlyOutput breaks P1: an epoch's output is released at the seal, before the
// ack.
type earlyOutput struct{ xlft.Gate }

func (o earlyOutput) Seal(e uint64) error {
	if err := o.Gate.Seal(e); err != nil {
		return err
	}
	return o.Gate.Release(e)
}

func (o earlyOutput) Release(uint64) error { return nil }

// openGate breaks P1: nothing is held.
type openGate struct{ xlft.Gate }

func (openGate) Seal(uint64) error    { return nil }
func (openGate) Release(uint64) error { return nil }

// lossyOutput breaks P5: held output is dropped when protection ends.
type lossyOutput struct{ xlft.Gate }

func (o lossyOutput) ReleaseAll() error {
	o.Gate.(interface{ Purge() }).Purge()
	return o.Gate.ReleaseAll()
}

// swappingCopy breaks P2: two successive writes reach the disk in the wrong
// order.
type swappingCopy struct {
	backup.DiskCopy
	mu   sync.Mutex
	off  int64
	kept []byte
}

// swap keeps a write for later and returns the write that was kept before.
// Nothing waits with the lock held: the simulation's clock would stand still.
func (c *swappingCopy) swap(p []byte, off int64) (kept []byte, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept, at = c.kept, c.off
	c.kept, c.off = p, off
	return kept, at
}

func (c *swappingCopy) WriteAt(p []byte, off int64, fua bool) error {
	kept, at := c.swap(nil, 0)
	if kept == nil {
		c.swap(bytes.Clone(p), off)
		return nil
	}
	return errors.Join(c.DiskCopy.WriteAt(p, off, fua), c.DiskCopy.WriteAt(kept, at, fua))
}

func (c *swappingCopy) Flush() error {
	if kept, at := c.swap(nil, 0); kept != nil {
		c.DiskCopy.WriteAt(kept, at, false)
	}
	return c.DiskCopy.Flush()
}

// forgetfulCopy breaks P2: it answers a flush without flushing.
type forgetfulCopy struct{ backup.DiskCopy }

func (c forgetfulCopy) Flush() error { return nil }

// boastfulCopy breaks P2: when its session ends it is recorded as consistent as
// of an epoch, and lacks that epoch's newest write.
type boastfulCopy struct {
	backup.DiskCopy
	mu  sync.Mutex // a commit writes many at once
	off int64
	old []byte // what the newest write replaced
}

func (c *boastfulCopy) WriteAt(p []byte, off int64, fua bool) error {
	old := make([]byte, len(p))
	err := c.DiskCopy.ReadAt(old, off)
	c.mu.Lock() // not while the disk takes its time, which stands still for who waits for a lock
	c.off, c.old = off, old
	c.mu.Unlock()
	return errors.Join(err, c.DiskCopy.WriteAt(p, off, fua))
}

func (c *boastfulCopy) Record(r xlft.DiskRecord) error {
	if r.SyncPoint.Epoch > 0 && c.old != nil {
		c.DiskCopy.WriteAt(c.old, c.off, true)
	}
	return c.DiskCopy.Record(r)
}

// hastyCopy breaks P2: its journal's Sync returns before the journal is on
// stable storage.
type hastyCopy struct{ backup.DiskCopy }

func (c hastyCopy) Durable() diskrepl.EpochStore {
	if l := c.DiskCopy.Durable(); l != nil {
		return hastyStore{l}
	}
	return nil
}

type hastyStore struct{ diskrepl.EpochStore }

func (s hastyStore) Create(epoch uint64) (diskrepl.EpochFile, error) {
	l, err := s.EpochStore.Create(epoch)
	return hastyFile{l}, err
}

type hastyFile struct{ diskrepl.EpochFile }

func (hastyFile) Sync() error { return nil }

// deafCopy breaks P2: the writes that the primary may not have made are not
// replayed.
type deafCopy struct{ backup.DiskCopy }

func (c deafCopy) WriteAt([]byte, int64, bool) error { return nil }

// lateDisks break P2: the disk's epoch ends after the memory's epoch.
type lateDisks struct {
	xlft.Disks
	by time.Duration
}

func (d lateDisks) Seal(e uint64) error {
	time.AfterFunc(d.by, func() { d.Disks.Seal(e) })
	return nil
}

func late(by time.Duration) func(*simxen.Disks) xlft.Disks {
	return func(d *simxen.Disks) xlft.Disks { return lateDisks{d, by} }
}

// eagerDisks break P2: held writes go to the storage at the seal.
type eagerDisks struct{ xlft.Disks }

func (d eagerDisks) Seal(e uint64) error {
	if err := d.Disks.Seal(e); err != nil {
		return err
	}
	return d.Disks.Release(e)
}

// hastyDisks break P2: the backup is told to run the domain while writes to the
// storage are in flight.
type hastyDisks struct{ xlft.Disks }

func (d hastyDisks) Drain(context.Context) error { return nil }

// yesArbiter breaks P3: every claim succeeds.
type yesArbiter struct{ xlft.Arbiter }

func (yesArbiter) Claim(context.Context, xlft.Claim) (bool, error) { return true, nil }

// forgetfulGuest breaks P4: nobody looks whether the domain's memory changed.
type forgetfulGuest struct {
	xlft.Guest
	first xlft.Memory
}

func (g *forgetfulGuest) HoldMemory() (m xlft.Memory, err error) {
	g.first, err = g.Guest.HoldMemory()
	return g.first, err
}

func (g *forgetfulGuest) Memory() (xlft.Memory, error) { return g.first, nil }

// looseGuest breaks P4: the domain may take another page for one that it gave
// back, between two looks.
type looseGuest struct{ xlft.Guest }

func (g looseGuest) HoldMemory() (xlft.Memory, error) { return g.Guest.Memory() }

// TestSimulationCatches breaks each promise on purpose. The checks must notice.
func TestSimulationCatches(t *testing.T) {
	for _, c := range []struct {
		promise, how string
		broken       variant
	}{
		{"P1", "output leaves at the seal", variant{net: func(g xlft.Gate) xlft.Gate { return earlyOutput{g} }}},
		{"P1", "output leaves at the seal, and nobody takes over", variant{net: func(g xlft.Gate) xlft.Gate { return earlyOutput{g} },
			faults: []int{receiverStop}}},
		{"P1", "nothing is held, and nobody takes over", variant{net: func(g xlft.Gate) xlft.Gate { return openGate{g} },
			faults: []int{receiverStop}}},
		{"P2", "applied before the commit", variant{leak: true, storage: mirrored}},
		{"P2", "disk sealed after the resume", variant{disks: late(15 * time.Millisecond), storage: mirrored}},
		{"P2", "writes out of order", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return &swappingCopy{DiskCopy: c} },
			storage: mirrored}},
		{"P2", "flush lost", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return forgetfulCopy{c} }, storage: mirrored}},
		{"P2", "copy older than it says", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return &boastfulCopy{DiskCopy: c} },
			storage: mirrored, faults: []int{receiverStop, powerCutA}}},
		{"P2", "journal not on stable storage", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return hastyCopy{c} },
			storage: mirrored, faults: []int{powerCutB}}},
		{"P2", "journal replayed twice, out of order", variant{twice: true, storage: mirrored}},
		{"P2", "shared disk sealed after the resume", variant{disks: late(15 * time.Millisecond), storage: shared}},
		{"P2", "held writes leave at the seal", variant{disks: func(d *simxen.Disks) xlft.Disks { return eagerDisks{d} }, storage: shared}},
		{"P2", "shared storage not replayed", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return deafCopy{c} }, storage: shared}},
		{"P2", "handed over before the storage has all", variant{disks: func(d *simxen.Disks) xlft.Disks { return hastyDisks{d} },
			storage: shared, faults: []int{switchOver}}},
		{"P2", "shared storage without a fence", variant{arbiter: func(a xlft.Arbiter) xlft.Arbiter { return yesArbiter{a} }, storage: shared}},
		{"P3", "arbiter says yes to both", variant{arbiter: func(a xlft.Arbiter) xlft.Arbiter { return yesArbiter{a} }}},
		{"P4", "checkpoint not applied whole", variant{torn: true}},
		{"P4", "domain grows unnoticed", variant{guest: func(g xlft.Guest) xlft.Guest { return &forgetfulGuest{Guest: g} },
			faults: []int{grows, powerCutA}}},
		{"P4", "a page comes for another unnoticed", variant{guest: func(g xlft.Guest) xlft.Guest { return looseGuest{g} },
			faults: []int{givesBack, powerCutA}}},
		{"P5", "held output dropped", variant{net: func(g xlft.Gate) xlft.Gate { return lossyOutput{g} }}},
		{"mode", "events get lost", variant{mode: xlft.ModeEvent, events: deafTo}},
		{"mode", "events get lost, strict", variant{mode: xlft.ModeStrict, events: deafTo}},
		{"mode", "a window without an end", variant{mode: xlft.ModeEvent, pacing: func(p *xlft.Pacing) { p.EpochMin, p.WindowMax = time.Hour, time.Hour }}},
		{"mode", "a strict checkpoint resumes the domain", variant{mode: xlft.ModeStrict, guest: func(g xlft.Guest) xlft.Guest { return eagerGuest{g} }}},
		{"P6", "silence not noticed", variant{patience: time.Minute}},
		{"P6", "hanging capture not noticed", variant{noLimit: true, guest: func(g xlft.Guest) xlft.Guest {
			return &hangingGuest{g, 3, func(ctx context.Context) { <-ctx.Done() }}
		}}},
	} {
		t.Run(c.promise+" "+c.how, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 500; seed++ {
				violations, _, _ := runSim(t, seed, c.broken, zap.NewNop())
				for _, v := range violations {
					if strings.HasPrefix(v, c.promise) {
						t.Logf("caught with seed %d: %s", seed, v)
						return
					}
				}
			}
			t.Errorf("500 schedules with %s broken on purpose, and nothing noticed", c.promise)
		})
	}
}

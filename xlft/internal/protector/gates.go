package protector

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"xlft/netbuffer"
	"xlft/xlft"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

// netGate is the network gate of a domain, whose network devices may come and go.
type netGate struct {
	gate
	// quiesce, once it is set, pauses the domain until resume is called.
	quiesce func() (resume func(), err error)
}

// gate is what a netGate needs of a netbuffer.Gate.
type gate interface {
	xlft.Gate
	AddVifs() ([]string, error)
	Restore() ([]string, error)
	Missing(devices []int) []int
	Holding() (holding, adopted bool)
	Events() <-chan struct{}
	Watching() (netbuffer.Way, error)
}

// watching says how the gate notices that the domain sends; "" if there is nothing
// that it could send by.
func (g *netGate) watching() string {
	way, why := g.Watching()
	if why != nil {
		return fmt.Sprintf("%s (%v)", way, why)
	}
	return string(way)
}

// polled says whether only looks at the gate find out that the domain sends.
func (g *netGate) polled() bool {
	way, _ := g.Watching()
	return way == netbuffer.Polling
}

// gateTimeout bounds waits for packets on their way out. A domain that stands
// still a little longer is better than one that loses its protection because
// dom0 is busy.
const gateTimeout = 5 * time.Second

// openGate builds the network gate of a domain that has these network devices,
// or adopts the one that an earlier protector left.
func openGate(h *xen.Host, d xen.Domain, devices []int, limit uint64) (*netGate, error) {
	n := &netGate{}
	var err error
	n.gate, err = openQueues(h, d, netbuffer.Options{
		Devices: devices,
		Limit:   limit,
		Timeout: gateTimeout,
		Quiesce: func() (func(), error) {
			if n.quiesce == nil {
				return func() {}, nil
			}
			resume, err := n.quiesce()
			if errors.Is(err, syscall.ESRCH) {
				return func() {}, nil // a domain that is gone sends nothing
			}
			return resume, err
		},
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// covers makes sure, before a protection begins, that all that the domain sends
// will be held: that each of its network devices is behind the gate, and no other
// program beside it.
func (g *netGate) covers(domain uint32, devices []int) error {
	for _, mend := range []func() ([]string, error){g.AddVifs, g.Restore} {
		if _, err := mend(); err != nil {
			return err
		}
	}
	var errs error
	if _, _, err := g.Held(); errors.Is(err, netbuffer.ErrForeign) {
		errs = err
	}
	for _, n := range g.Missing(devices) {
		errs = errors.Join(errs, &netbuffer.NoVifError{Vif: fmt.Sprintf("vif%d.%d", domain, n)})
	}
	return errs
}

// Seal also gives gates to network devices that came since, and redirects those
// again whose redirect some other program removed. What those devices sent in
// this epoch was not held: the seal fails, and protection begins again. Before
// the first seal nothing had to be held, so the first seal goes on.
func (g *netGate) Seal(epoch uint64) error {
	holding, _ := g.Holding()
	err := g.gate.Seal(epoch)
	var mend func() ([]string, error)
	switch {
	case errors.Is(err, netbuffer.ErrBroken):
		return err
	case errors.Is(err, netbuffer.ErrNewVif):
		mend = g.AddVifs
	case errors.Is(err, netbuffer.ErrBypassed):
		mend = g.Restore
	default:
		return err
	}
	vifs, merr := mend()
	if merr != nil {
		return errors.Join(err, merr)
	}
	if !holding {
		return g.gate.Seal(epoch)
	}
	if len(vifs) > 0 {
		return fmt.Errorf("%w (now held: %s)", err, strings.Join(vifs, " "))
	}
	return err
}

// disks are the domain's disks as its disk server has them.
type disks struct {
	*diskserver.Client
	outdate func() error // records that the copies here are outdated
}

// Discard records that the copies here are outdated before anything else: no
// domain may run from them, whatever becomes of the disk server.
func (d *disks) Discard() error {
	return errors.Join(d.outdate(), d.Client.Discard())
}

func outdate(records store.Dir, domain string, ds []wire.Disk) error {
	var all error
	for _, d := range ds {
		// If its record can't be read, that it is outdated is what counts.
		was, _ := records.LoadDisk(domain, d.VDev)
		if err := records.SaveDisk(domain, d.VDev, xlft.DiskRecord{State: xlft.Outdated, Data: was.Data, Sector: was.Sector}); err != nil {
			all = errors.Join(all, err)
		}
	}
	return all
}

package protector

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"xlft/netbuffer"
	"xlft/xlft"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

// netGate is the network gate of a domain, whose network devices may come and go.
type netGate struct{ *netbuffer.Gate }

// gateTimeout bounds waits for packets on their way out. A domain that stands
// still a little longer is better than one that loses its protection because
// dom0 is busy.
const gateTimeout = 5 * time.Second

// openGate builds the network gate of a domain, or adopts the one that an
// earlier protector left.
func openGate(h *xen.Host, d xen.Domain, limit uint64) (*netGate, error) {
	g, err := netbuffer.Open(d.ID, netbuffer.Options{
		Limit:   uint32(min(limit, 1<<32-1)),
		Timeout: gateTimeout,
		Quiesce: func() (func(), error) {
			if err := h.Pause(d.ID); err != nil {
				return nil, err
			}
			return func() { h.Unpause(d.ID) }, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return &netGate{g}, nil
}

// Seal also gives gates to network devices that came since. What those sent in
// this epoch was not held: the seal fails, and protection begins again.
func (g *netGate) Seal(epoch uint64) error {
	err := g.Gate.Seal(epoch)
	if err != nil {
		if vifs, aerr := g.AddVifs(); aerr == nil && len(vifs) > 0 {
			return fmt.Errorf("%w (now held too: %s)", err, strings.Join(vifs, " "))
		}
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
		if err := records.SaveDisk(domain, d.VDev, xlft.DiskRecord{State: xlft.Outdated}); err != nil {
			all = errors.Join(all, err)
		}
	}
	return all
}

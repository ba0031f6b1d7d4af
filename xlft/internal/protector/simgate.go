//go:build simxen && !xen

package protector

import (
	"errors"

	"xlft/netbuffer"
	"xlft/xlft/internal/xen"
)

// simGate is a netbuffer.Gate over queues in a simulated kernel.
type simGate struct {
	*netbuffer.Gate
	path xen.SimPath
}

// openQueues opens a domain's gate, or adopts what an earlier process left, as
// netbuffer.Open does.
func openQueues(h *xen.Host, d xen.Domain, opts netbuffer.Options) (gate, error) {
	path, current, holding, err := h.Gate(d.ID)
	if err != nil {
		return nil, err
	}
	opts.Devices, opts.Quiesce = nil, nil
	v := netbuffer.Vif{Name: "vif1.0", Path: path, Current: current}
	if holding {
		return &simGate{netbuffer.Adopt(opts, v), path}, nil
	}
	return &simGate{netbuffer.New(opts, v), path}, nil
}

// Discard also destroys the queues, as the kernel does.
func (g *simGate) Discard() error { return errors.Join(g.Gate.Discard(), g.path.Destroy()) }

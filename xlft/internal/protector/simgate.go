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
	path    xen.SimPath
	quiesce func() (resume func(), err error)
}

// openQueues opens a domain's gate, or adopts what an earlier process left, as
// netbuffer.Open does.
func openQueues(h *xen.Host, d xen.Domain, opts netbuffer.Options) (gate, error) {
	path, current, holding, err := h.Gate(d.ID)
	if err != nil {
		return nil, err
	}
	quiesce := opts.Quiesce
	opts.Devices, opts.Quiesce = nil, nil
	v := netbuffer.Vif{Name: "vif1.0", Path: path, Current: current}
	if holding {
		return &simGate{netbuffer.Adopt(opts, v), path, quiesce}, nil
	}
	return &simGate{netbuffer.New(opts, v), path, quiesce}, nil
}

// Close also pauses the domain meanwhile, as a gate in the kernel has it done.
func (g *simGate) Close() error {
	resume, err := g.quiesce()
	if err != nil {
		return err
	}
	defer resume()
	return g.Gate.Close()
}

// Discard also destroys the queues, as the kernel does.
func (g *simGate) Discard() error { return errors.Join(g.Gate.Discard(), g.path.Destroy()) }

//go:build !simxen || xen

package protector

import (
	"xlft/netbuffer"
	"xlft/xlft/internal/xen"
)

// openQueues opens a domain's gate in the kernel.
func openQueues(_ *xen.Host, d xen.Domain, opts netbuffer.Options) (gate, error) {
	g, err := netbuffer.Open(d.ID, opts)
	if err != nil {
		return nil, err // no gate that is not nil
	}
	return g, nil
}

package simxen

import (
	"context"
	"io"

	"xlft/savestream"
	"xlft/savestream/capture"
	"xlft/xlft"
)

// Save runs the product's capture on the domain's simulated memory.
func (g *guest) Save(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	s := &source{g: g}
	if err := g.with(func(d *Domain) { s.log = make([]uint64, 2*len(d.pages)/64+16) }); err != nil {
		return err
	}
	return capture.Save(ctx, dst, s, capture.Hooks{Suspend: hooks.Suspend, Captured: hooks.Captured, Next: hooks.Next})
}

// source is a domain as a capture.Source. The hypervisor does as its caller says: there is
// one log, and nobody else takes it.
type source struct {
	g    *guest
	log  []uint64
	data []byte
}

func (s *source) Head() (savestream.Header, []savestream.Record, error) {
	return savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17}, nil, nil // as of a PVH domain
}

// Span is above all pages that the domain will have: Xen's domains have special pages high
// up, so that memory which comes later is never above what the log covers.
func (s *source) Span() (uint64, error) { return uint64(len(s.log)) * 64, nil }

func (s *source) StartLog() error { return s.g.with((*Domain).clean) }
func (s *source) StopLog() error  { return nil }

func (s *source) TakeLog(uint64, bool) ([]uint64, error) {
	clear(s.log)
	err := s.g.with(func(d *Domain) {
		for i := range d.dirty {
			s.log[i/64] |= 1 << (i % 64)
		}
		d.clean()
	})
	return s.log, err
}

func (s *source) Mark(pfn, n uint64) error {
	return s.g.with(func(d *Domain) {
		for p := range n {
			d.dirty[int(pfn+p)] = true
		}
	})
}

func (s *source) Marked(pfn uint64) (ok bool, err error) {
	err = s.g.with(func(d *Domain) { ok = d.dirty[int(pfn)] && !d.gone })
	return ok, err
}

func (s *source) Types(pfns []uint64, types []savestream.PageType) error {
	return s.g.with(func(d *Domain) {
		for i, pfn := range pfns {
			types[i] = savestream.PageNormal
			if pfn >= uint64(len(d.pages)) || d.lacks[int(pfn)] {
				types[i] = savestream.PageXTab
			}
		}
	})
}

// Map copies: the simulated pages lie anywhere.
func (s *source) Map(pfns []uint64) ([]byte, error) {
	s.data = s.data[:0]
	err := s.g.with(func(d *Domain) {
		for _, pfn := range pfns {
			if p := d.pages[pfn]; p != nil {
				s.data = append(s.data, p...)
			} else {
				s.data = append(s.data, zeroPage[:]...)
			}
		}
	})
	return s.data, err
}

func (s *source) Unmap([]byte) {}

func (s *source) State() ([]savestream.Record, error) {
	return []savestream.Record{{Type: savestream.HVMContext, Body: []byte("vcpu context")}}, nil
}

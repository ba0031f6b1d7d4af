//go:build simxen && !xen

package xen

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"xlft/savestream"
	"xlft/savestream/capture"
	"xlft/xlft"
)

// Guest is a domain of this host as an xlft.Guest.
type Guest struct {
	h  *Host
	id uint32

	limit, held uint64 // of HoldMemory
}

// Guest returns a domain as an xlft.Guest.
func (h *Host) Guest(d Domain) *Guest { return &Guest{h: h, id: d.ID} }

func (g *Guest) Suspend(ctx context.Context) (asked time.Time, err error) {
	asked = time.Now()
	for {
		switch a, err := g.h.call(SimCall{Op: "suspend", ID: g.id}); {
		case err != nil:
			return asked, err
		case a.Why != "":
			return asked, fmt.Errorf("%w: %s", xlft.ErrGuestEnded, a.Why)
		case a.OK:
			return asked, nil
		}
		select {
		case <-ctx.Done():
			return asked, xlft.ErrSuspendTimeout
		case <-time.After(time.Millisecond):
		}
	}
}

func (g *Guest) Resume() error  { return g.h.do(SimCall{Op: "resume", ID: g.id}) }
func (g *Guest) Pause() error   { return g.h.Pause(g.id) }
func (g *Guest) Destroy() error { return g.h.Destroy(g.id) }

func (g *Guest) Unpause() error {
	err := g.h.Unpause(g.id)
	if err != nil && strings.Contains(err.Error(), "it is not paused") {
		return fmt.Errorf("%w: %w", xlft.ErrNotPaused, err)
	}
	return err
}

func (g *Guest) DirtyPages() (uint64, error) {
	a, err := g.h.call(SimCall{Op: "dirty", ID: g.id})
	return a.N, err
}

func (g *Guest) Memory() (xlft.Memory, error) {
	a, err := g.h.call(SimCall{Op: "memory", ID: g.id})
	return xlft.Memory{Pages: a.N, Limit: a.Limit}, err
}

func (g *Guest) HoldMemory() (xlft.Memory, error) {
	m, err := g.Memory()
	if err != nil {
		return m, err
	}
	g.limit, g.held = max(m.Limit, m.Pages), m.Pages-1
	if err := g.h.do(SimCall{Op: "set-limit", ID: g.id, N: g.held}); err != nil {
		return m, err
	}
	return g.Memory()
}

func (g *Guest) ReleaseMemory() error {
	if g.held == 0 {
		return nil
	}
	g.held = 0
	return g.h.do(SimCall{Op: "set-limit", ID: g.id, N: g.limit})
}

func (g *Guest) Unpopulated() (uint64, error) { return 0, nil }

func (g *Guest) State() (xlft.GuestState, string, error) {
	a, err := g.h.call(SimCall{Op: "state", ID: g.id})
	return xlft.GuestState(a.State), a.Why, err
}

// Inherit has nothing to take up: no other program suspends a simulated domain.
func (g *Guest) Inherit(string, string) error { return nil }

// Save runs the capture that ships.
func (g *Guest) Save(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	m, err := g.Memory()
	if err != nil {
		return err
	}
	return capture.Save(ctx, dst, simSource{g, m.Pages}, capture.Hooks{Suspend: hooks.Suspend, Captured: hooks.Captured, Next: hooks.Next})
}

// simSource is a domain as a capture.Source. It has all its pages, from 0 on.
type simSource struct {
	g     *Guest
	pages uint64
}

func (s simSource) Head() (savestream.Header, []savestream.Record, error) {
	return savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17}, nil, nil
}

func (s simSource) Span() (uint64, error) { return s.pages, nil }
func (s simSource) StartLog() error       { return s.g.h.do(SimCall{Op: "take-log", ID: s.g.id}) }
func (s simSource) StopLog() error        { return nil }

func (s simSource) TakeLog(span uint64, suspended bool) ([]uint64, error) {
	c := SimCall{Op: "take-log", ID: s.g.id}
	if suspended {
		c.N = 1
	}
	a, err := s.g.h.call(c)
	log := make([]uint64, (span+63)/64)
	for _, p := range a.PFNs {
		log[p/64] |= 1 << (p % 64)
	}
	return log, err
}

func (s simSource) Mark(pfn, n uint64) error {
	for p := range n {
		if err := s.g.h.do(SimCall{Op: "mark", ID: s.g.id, N: pfn + p}); err != nil {
			return err
		}
	}
	return nil
}

func (s simSource) Marked(pfn uint64) (bool, error) {
	a, err := s.g.h.call(SimCall{Op: "marked", ID: s.g.id, N: pfn})
	return a.OK, err
}

func (s simSource) Types(_ []uint64, types []savestream.PageType) error {
	clear(types)
	return nil
}

func (s simSource) Map(pfns []uint64) ([]byte, error) {
	a, err := s.g.h.call(SimCall{Op: "read", ID: s.g.id, PFNs: pfns})
	return a.Data, err
}

func (s simSource) Unmap([]byte) {}

func (s simSource) State() ([]savestream.Record, error) {
	return []savestream.Record{{Type: savestream.HVMContext, Body: []byte("vcpu context")}}, nil
}

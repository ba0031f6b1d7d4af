//go:build simxen && !xen

package xen

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"xlft/savestream"
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

// Unsubscribe has nothing to undo: a simulated suspend tells nobody but its caller.
func (g *Guest) Unsubscribe() {}

// Save writes what xc_domain_save writes: all pages while the domain runs, then at
// each checkpoint the pages written since.
func (g *Guest) Save(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := dst.ReadFrom(pr)
		io.Copy(io.Discard, pr)
		done <- err
	}()
	err := g.save(ctx, pw, hooks)
	pw.Close()
	if derr := <-done; err == nil {
		err = derr
	}
	return err
}

func (g *Guest) save(ctx context.Context, w io.Writer, hooks xlft.SaveHooks) error {
	enc := savestream.NewEncoder(w, savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17})
	if err := enc.Encode(savestream.Record{Type: savestream.StaticDataEnd}); err != nil {
		return err
	}
	pages := func(op string) error {
		a, err := g.h.call(SimCall{Op: op, ID: g.id})
		if err != nil || len(a.PFNs) == 0 {
			return err
		}
		entries := make([]savestream.PageEntry, len(a.PFNs))
		for i, pfn := range a.PFNs {
			entries[i] = savestream.PageEntry{PFN: pfn}
		}
		return enc.WritePages(entries, a.Data)
	}
	if err := pages("all-pages"); err != nil { // begins the log of written pages
		return err
	}
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := hooks.Suspend(); err != nil {
			return err
		}
		if err := pages("written-pages"); err != nil {
			return err
		}
		for _, r := range []savestream.Record{
			{Type: savestream.HVMContext, Body: []byte("vcpu context")}, {Type: savestream.Checkpoint},
		} {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		if err := hooks.Captured(); err != nil {
			return err
		}
		if !hooks.Next() {
			return nil
		}
	}
}

package main

import (
	"context"
	"encoding/binary"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"xlft/savestream"
	"xlft/savestream/capture"
	"xlft/xlft"
)

// costs are the times of what only a hypervisor and a guest's kernel can do. They are put
// in, not measured.
type costs struct {
	suspend time.Duration // from the request until the guest has suspended
	resume  time.Duration // until it runs
	page    time.Duration // to map one page
}

// A guest is memory that a program writes to, as the domain of a session.
type guest struct {
	costs
	pages uint64
	mem   []byte
	log   []atomic.Uint64 // written pages
	words []uint64

	run     sync.RWMutex // held for reading while the program does a step, for writing while it is suspended
	stopped atomic.Bool
	begun   time.Time
	stood   time.Duration // suspended in all
	since   time.Time
}

func newGuest(pages int, c costs) *guest {
	return &guest{
		costs: c, pages: uint64(pages), mem: make([]byte, pages*savestream.PageSize),
		log: make([]atomic.Uint64, (pages+63)/64), words: make([]uint64, (pages+63)/64), begun: time.Now(),
	}
}

// write changes memory, and logs that. The program's step holds run.
func (g *guest) write(at uint64, b []byte) {
	copy(g.mem[at:], b)
	for p := at / savestream.PageSize; p <= (at+uint64(len(b))-1)/savestream.PageSize; p++ {
		g.mark(p)
	}
}

func (g *guest) mark(p uint64) {
	if w := &g.log[p/64]; w.Load()>>(p%64)&1 == 0 {
		w.Or(1 << (p % 64))
	}
}

// busy takes processor time, as a hypervisor does: a sleep would be too coarse.
func busy(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
	}
}

func (g *guest) Save(ctx context.Context, dst io.ReaderFrom, h xlft.SaveHooks) error {
	return capture.Save(ctx, dst, source{g}, capture.Hooks{Suspend: h.Suspend, Captured: h.Captured, Next: h.Next})
}

func (g *guest) Suspend(context.Context) (asked time.Time, err error) {
	asked = time.Now()
	time.Sleep(g.suspend) // the program goes on meanwhile
	g.run.Lock()
	g.stopped.Store(true)
	g.since = time.Now()
	return asked, nil
}

func (g *guest) Resume() error {
	busy(g.resume)
	g.stood += time.Since(g.since)
	g.stopped.Store(false)
	g.run.Unlock()
	return nil
}

func (g *guest) State() (xlft.GuestState, string, error) {
	if g.stopped.Load() {
		return xlft.GuestSuspended, "", nil
	}
	return xlft.GuestRuns, "", nil
}

func (g *guest) Pause() error                     { return nil }
func (g *guest) Unpause() error                   { return xlft.ErrNotPaused }
func (g *guest) Destroy() error                   { return nil }
func (g *guest) HoldMemory() (xlft.Memory, error) { return g.Memory() }
func (g *guest) ReleaseMemory() error             { return nil }
func (g *guest) Memory() (xlft.Memory, error) {
	return xlft.Memory{Pages: g.pages, Limit: g.pages}, nil
}
func (g source) Span() (uint64, error)           { return g.pages, nil }
func (g source) StartLog() error                 { return nil }
func (g source) StopLog() error                  { return nil }
func (g source) Marked(pfn uint64) (bool, error) { return g.log[pfn/64].Load()>>(pfn%64)&1 == 1, nil }
func (g source) Unmap([]byte)                    {}

func (g *guest) DirtyPages() (n uint64, err error) {
	for i := range g.log {
		n += uint64(bits.OnesCount64(g.log[i].Load()))
	}
	return n, nil
}

// source is the guest as a capture.Source.
type source struct{ *guest }

func (g source) Head() (savestream.Header, []savestream.Record, error) {
	return savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17}, nil, nil
}

func (g source) TakeLog(uint64, bool) ([]uint64, error) {
	for i := range g.log {
		g.words[i] = g.log[i].Swap(0)
	}
	return g.words, nil
}

func (g source) Mark(pfn, n uint64) error {
	for p := range n {
		g.mark(pfn + p)
	}
	return nil
}

func (g source) Types(_ []uint64, types []savestream.PageType) error {
	clear(types)
	return nil
}

// Map gathers the pages: Go has no other way to have them side by side. That counts as a
// part of the time that a map takes.
func (g source) Map(pfns []uint64) ([]byte, error) {
	until := time.Now().Add(time.Duration(len(pfns)) * g.page)
	b := make([]byte, 0, len(pfns)*savestream.PageSize)
	for _, p := range pfns {
		b = append(b, g.mem[p*savestream.PageSize:(p+1)*savestream.PageSize]...)
	}
	busy(time.Until(until))
	return b, nil
}

func (source) State() ([]savestream.Record, error) {
	return []savestream.Record{{Type: savestream.HVMContext, Body: machineState}}, nil
}

// contextSize is what Xen 4.17 gives for a domain with one vCPU.
const contextSize = 5232

var machineState = binary.LittleEndian.AppendUint64(make([]byte, contextSize-8), 1)

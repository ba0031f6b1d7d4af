package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"xlft/savestream"
)

// A machine is a domain in memory. Like Xen it maps pages as they are, not a copy.
type machine struct {
	span    uint64
	pages   map[uint64][]byte
	types   map[uint64]savestream.PageType // of pages that are not normal
	log     map[uint64]bool
	logging bool
	mapped  map[*byte][]uint64
	state   byte

	taking  func()         // before the log is taken
	mapping func()         // before pages are mapped
	taken   func()         // after the log of a suspended domain was taken
	while   func(*machine) // the domain runs: called between steps of the live pass

	robs bool // another program's log was taken
	dies bool // it is being destroyed: the log is as if nothing were written

	// Broken on purpose.
	forgets  uint64 // a page that the log does not have
	short    bool   // the log is emptied before it is read
	mapOther bool   // pages are mapped in another order
}

func newMachine(span uint64, pages ...uint64) *machine {
	m := &machine{span: span, pages: map[uint64][]byte{}, types: map[uint64]savestream.PageType{}, log: map[uint64]bool{}, mapped: map[*byte][]uint64{}}
	for _, p := range pages {
		m.pages[p] = bytes.Repeat([]byte{byte(p) | 1}, savestream.PageSize)
	}
	return m
}

func (m *machine) write(pfn uint64, b byte) {
	m.pages[pfn][int(b)] ^= b | 1
	if m.logging && pfn != m.forgets {
		m.log[pfn] = true
	}
}

func (m *machine) runs() {
	if m.while != nil {
		m.while(m)
	}
}

func (m *machine) Head() (savestream.Header, []savestream.Record, error) {
	return savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17}, []savestream.Record{
		{Type: savestream.X86CPUIDPolicy, Body: make([]byte, 24)},
	}, nil
}

func (m *machine) Span() (uint64, error) { return m.span, nil }

func (m *machine) StartLog() error {
	m.logging, m.log = true, map[uint64]bool{}
	return nil
}

func (m *machine) StopLog() error {
	m.logging = false
	return nil
}

func (m *machine) TakeLog(span uint64, suspended bool) ([]uint64, error) {
	log := make([]uint64, (span+63)/64)
	if m.dies {
		return log, nil
	}
	if !m.log[slices.Min(slices.Collect(maps.Keys(m.pages)))] {
		m.robs = true
	}
	if m.taking != nil {
		m.taking()
	}
	if m.short {
		clear(m.log)
		m.Mark(slices.Min(slices.Collect(maps.Keys(m.pages))), 1)
	}
	for p := range m.log {
		if p < span {
			log[p/64] |= 1 << (p % 64)
		}
	}
	if span%8 != 0 {
		log[span/64] |= (1<<(8-span%8) - 1) << (span % 64) // the rest of the last byte may be anything
	}
	clear(m.log)
	switch {
	case !suspended:
		m.runs()
	case m.taken != nil:
		m.taken()
	}
	return log, nil
}

func (m *machine) Mark(pfn, n uint64) error {
	for p := pfn; p < pfn+n; p++ {
		if m.pages[p] != nil { // Xen logs no page that the domain does not have
			m.log[p] = true
		}
	}
	return nil
}

func (m *machine) Marked(pfn uint64) (bool, error) { return m.log[pfn] && !m.dies, nil }

func (m *machine) Types(pfns []uint64, types []savestream.PageType) error {
	if len(pfns) > Batch {
		return fmt.Errorf("%d pages at once", len(pfns))
	}
	for i, p := range pfns {
		types[i] = savestream.PageXTab
		if m.pages[p] != nil && !m.dies {
			types[i] = m.types[p]
		}
	}
	return nil
}

func (m *machine) Map(pfns []uint64) ([]byte, error) {
	if m.mapping != nil {
		m.mapping()
	}
	var b []byte
	if m.mapOther {
		pfns = slices.Clone(pfns)
		slices.Reverse(pfns)
	}
	for _, p := range pfns {
		if m.pages[p] == nil || !m.types[p].HasData() {
			return nil, fmt.Errorf("page %#x can't be mapped", p)
		}
		b = append(b, m.pages[p]...)
	}
	m.mapped[&b[0]] = pfns
	return b, nil
}

func (m *machine) Unmap(b []byte) { delete(m.mapped, &b[0]) }

func (m *machine) State() ([]savestream.Record, error) {
	m.state++
	return []savestream.Record{
		{Type: savestream.X86TSCInfo, Body: make([]byte, 24)},
		{Type: savestream.HVMContext, Body: []byte{m.state, 2, 3}},
	}, nil
}

// A reader builds the domain from the stream, and keeps its state at each checkpoint.
type reader struct {
	pages  map[uint64][]byte
	sent   []int // pages with content in each epoch
	states [][]byte
	at     []map[uint64][]byte
	err    error // to be returned at checkpoint fails
	fails  int
}

func (r *reader) ReadFrom(from io.Reader) (int64, error) {
	r.pages = map[uint64][]byte{}
	d := savestream.NewDecoder(from)
	n, ctx := 0, []byte(nil)
	for {
		rec, err := d.Next()
		if errors.Is(err, io.ErrUnexpectedEOF) && d.AtCheckpoint() {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		switch rec.Type {
		case savestream.PageDataType:
			pd, err := savestream.ParsePageData(rec.Body)
			if err != nil {
				return 0, err
			}
			for e, page := range pd.All() {
				if page != nil {
					n++
					r.pages[e.PFN] = slices.Clone(page)
				}
			}
		case savestream.HVMContext:
			ctx = slices.Clone(rec.Body)
		case savestream.Checkpoint:
			r.sent, r.states, r.at = append(r.sent, n), append(r.states, ctx), append(r.at, maps.Clone(r.pages))
			n = 0
			if r.fails == len(r.at) {
				return 0, r.err
			}
		}
	}
}

// unhindered are the hooks of a domain that suspends and resumes at once.
func unhindered(next func() bool) Hooks {
	return Hooks{Suspend: func() error { return nil }, Captured: func() error { return nil }, Next: next}
}

func same(a, b map[uint64][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

func clonePages(m map[uint64][]byte) map[uint64][]byte {
	c := map[uint64][]byte{}
	for p, b := range m {
		c[p] = slices.Clone(b)
	}
	return c
}

// run saves m for some checkpoints, with random writes while it runs, and returns the first
// difference between a checkpoint and the domain as it was suspended.
func run(m *machine, seed uint64, checkpoints int) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	all := slices.Sorted(maps.Keys(m.pages))
	writes := func(m *machine) {
		for range rnd.IntN(200) {
			p := all[rnd.IntN(len(all))]
			if m.types[p].HasData() {
				m.write(p, byte(rnd.Uint32()))
			}
		}
	}
	m.while = writes
	var want []map[uint64][]byte
	var r reader
	done := 0
	err := Save(context.Background(), &r, m, Hooks{
		Suspend: func() error {
			c := clonePages(m.pages)
			for p, t := range m.types {
				if !t.HasData() {
					delete(c, p)
				}
			}
			want = append(want, c)
			return nil
		},
		Captured: func() error {
			writes(m) // it runs, while its pages are still mapped
			return nil
		},
		Next: func() bool {
			writes(m)
			done++
			return done < checkpoints
		},
	})
	if err != nil {
		return err
	}
	if len(m.mapped) > 0 {
		return fmt.Errorf("%d mappings are left", len(m.mapped))
	}
	if m.logging {
		return errors.New("the log is still on")
	}
	if len(r.at) != checkpoints {
		return fmt.Errorf("%d checkpoints, want %d", len(r.at), checkpoints)
	}
	for i := range want {
		if !same(want[i], r.at[i]) {
			return fmt.Errorf("checkpoint %d differs", i+1)
		}
		if r.states[i][0] != byte(i+1) {
			return fmt.Errorf("checkpoint %d has registers %d", i+1, r.states[i][0])
		}
	}
	return nil
}

func pfns(from, n uint64) (all []uint64) {
	for p := from; p < from+n; p++ {
		all = append(all, p)
	}
	return all
}

func TestCheckpoints(t *testing.T) {
	for seed := range uint64(50) {
		// More than a batch, holes, a span that ends within a byte, special pages.
		m := newMachine(5003, slices.Concat(pfns(0, 1500), pfns(2000, 100), pfns(4990, 13))...)
		m.types[2003], m.types[4999] = savestream.PageBroken, savestream.PageXAlloc
		if err := run(m, seed, 4); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// The checks of run notice a capture, or a hypervisor, that misses pages.
func TestBroken(t *testing.T) {
	for name, brk := range map[string]func(*machine){
		"a page is not logged":              func(m *machine) { m.forgets = 7 },
		"the log is emptied unread":         func(m *machine) { m.short = true },
		"pages are mapped in another order": func(m *machine) { m.mapOther = true },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				m := newMachine(600, pfns(0, 300)...)
				brk(m)
				if run(m, seed, 4) != nil {
					return
				}
			}
			t.Error("nobody noticed")
		})
	}
}

// A checkpoint carries what was written, and the marked page.
func TestSendsWhatWasWritten(t *testing.T) {
	m := newMachine(1<<20, pfns(0, 3000)...)
	var r reader
	n := 0
	err := Save(context.Background(), &r, m, unhindered(func() bool {
		n++
		m.write(2500, byte(n))
		m.write(17, byte(n))
		return n < 4
	}))
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{3000 + 1 + 1, 3, 3, 3}; !slices.Equal(r.sent, want) { // the live pass has a second round
		t.Errorf("pages in each epoch: %v, want %v", r.sent, want)
	}
}

// Pages above those that the domain had are sent, whatever the log says.
func TestSpanGrows(t *testing.T) {
	m := newMachine(64, pfns(0, 10)...)
	m.forgets = 100
	var r reader
	n := 0
	err := Save(context.Background(), &r, m, unhindered(func() bool {
		n++
		m.span, m.pages[100] = 130, bytes.Repeat([]byte{9}, savestream.PageSize)
		return n < 2
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !same(r.pages, m.pages) {
		t.Error("the new page is missing")
	}
}

func TestErrors(t *testing.T) {
	gone := errors.New("gone")
	for _, when := range []string{"before its log is taken", "after that"} {
		t.Run("the domain is destroyed "+when, func(t *testing.T) {
			m := newMachine(64, pfns(0, 10)...)
			n, captured := 0, 0
			m.taken = func() { m.dies = m.dies || n == 3 && when == "after that" }
			err := Save(context.Background(), new(reader), m, Hooks{
				Suspend: func() error {
					n++
					m.dies = n == 3 && when != "after that"
					return nil
				},
				Captured: func() error { captured++; return nil },
				Next:     func() bool { m.write(3, byte(n)); return n < 5 },
			})
			if !errors.Is(err, ErrLogTaken) || captured != 2 {
				t.Errorf("%d checkpoints, %v", captured, err)
			}
		})
	}
	t.Run("the memory map grows beyond measure", func(t *testing.T) {
		m := newMachine(64, pfns(0, 10)...)
		err := Save(context.Background(), new(reader), m, unhindered(func() bool { m.span = 1 << 40; return true }))
		if !errors.Is(err, ErrGrown) {
			t.Error(err)
		}
	})
	t.Run("a domain without the first pages", func(t *testing.T) {
		m := newMachine(5000, pfns(2000, 10)...)
		n := 0
		err := Save(context.Background(), new(reader), m, unhindered(func() bool { n++; m.write(2003, 1); return n < 3 }))
		if err != nil {
			t.Error(err)
		}
	})
	// Another program begins the log anew, for itself. It gets all pages that were written
	// since, whatever ends the save.
	for _, end := range []string{"next checkpoint", "no next checkpoint", "suspend", "live pass", "while it is taken"} {
		t.Run("the log was taken: "+end, func(t *testing.T) {
			m := newMachine(64, pfns(0, 10)...)
			anew := func() { clear(m.log); m.write(5, 7); m.write(6, 7); m.write(9, 7) }
			n, want := 0, ErrLogTaken
			h := Hooks{Suspend: func() error { n++; return nil }, Captured: func() error { return nil }, Next: func() bool { anew(); return true }}
			switch end {
			case "no next checkpoint":
				want, h.Next = nil, func() bool { anew(); return false }
			case "suspend":
				want, h.Next = gone, func() bool { return true }
				h.Suspend = func() error {
					if n++; n == 2 {
						anew()
						return gone
					}
					return nil
				}
			case "live pass":
				m.mapping = anew
			case "while it is taken":
				h.Next = func() bool { m.taking = anew; return true }
			}
			err := Save(context.Background(), new(reader), m, h)
			if !errors.Is(err, want) || !m.logging || len(m.mapped) > 0 {
				t.Errorf("%v, log %v, mapped %d", err, m.logging, len(m.mapped))
			}
			if m.robs || !m.log[5] || !m.log[6] || !m.log[9] {
				t.Errorf("written pages are missing in its log: %v", m.log)
			}
		})
	}
	t.Run("the reader fails", func(t *testing.T) {
		m := newMachine(64, pfns(0, 10)...)
		err := Save(context.Background(), &reader{fails: 2, err: gone}, m, unhindered(func() bool { m.write(3, 1); return true }))
		if !errors.Is(err, gone) || m.logging || len(m.mapped) > 0 {
			t.Errorf("%v, log %v, mapped %d", err, m.logging, len(m.mapped))
		}
	})
	for _, at := range []string{"suspend", "captured"} {
		t.Run(at+" fails", func(t *testing.T) {
			m := newMachine(64, pfns(0, 10)...)
			hook := func(name string) func() error {
				return func() error {
					if name == at {
						return gone
					}
					return nil
				}
			}
			err := Save(context.Background(), new(reader), m, Hooks{Suspend: hook("suspend"), Captured: hook("captured"), Next: func() bool { return true }})
			if !errors.Is(err, gone) || m.logging || len(m.mapped) > 0 {
				t.Errorf("%v, log %v, mapped %d", err, m.logging, len(m.mapped))
			}
		})
	}
	t.Run("ctx ends the live pass", func(t *testing.T) {
		m := newMachine(1<<20, pfns(0, 10)...)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err := Save(ctx, new(reader), m, Hooks{})
		if !errors.Is(err, context.Canceled) || m.logging {
			t.Errorf("%v, log %v", err, m.logging)
		}
	})
}

type discard struct{}

func (discard) ReadFrom(r io.Reader) (int64, error) {
	buf, n := make([]byte, 256<<10), int64(0)
	for {
		k, err := r.Read(buf)
		n += int64(k)
		if err != nil {
			return n, nil
		}
	}
}

// BenchmarkCheckpoint is the part of a pause that this package takes, without the
// hypervisor: the log is walked and the pages are copied.
func BenchmarkCheckpoint(b *testing.B) {
	for _, pages := range []uint64{550, 4000, 16000} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			m := &still{span: 1 << 20, log: make([]uint64, 1<<14), data: make([]byte, Batch*savestream.PageSize)}
			for p := range pages {
				m.log[p/64] |= 1 << (p % 64)
			}
			n := 0
			b.SetBytes(int64(pages) * savestream.PageSize)
			err := Save(context.Background(), discard{}, m, unhindered(func() bool {
				if n == 0 {
					b.ResetTimer()
				}
				n++
				return n <= b.N
			}))
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}

// still is a domain of which the same pages are written in each epoch.
type still struct {
	machine
	span uint64
	log  []uint64
	data []byte
}

func (s *still) Span() (uint64, error)                       { return s.span, nil }
func (s *still) TakeLog(uint64, bool) ([]uint64, error)      { return s.log, nil }
func (s *still) StartLog() error                             { return nil }
func (s *still) StopLog() error                              { return nil }
func (s *still) Mark(uint64, uint64) error                   { return nil }
func (s *still) Marked(uint64) (bool, error)                 { return true, nil }
func (s *still) Types([]uint64, []savestream.PageType) error { return nil }
func (s *still) Map(pfns []uint64) ([]byte, error) {
	return s.data[:len(pfns)*savestream.PageSize], nil
}
func (s *still) Unmap([]byte) {}

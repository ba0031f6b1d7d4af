//go:build xen && lab

package xen

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"xlft/savestream"
	"xlft/xlft"
)

// An image is what a stream makes of a domain. It keeps hashes of pages.
type image struct {
	header  savestream.Header
	pages   map[uint64][32]byte
	content map[uint64][]byte                // kept if it is not nil
	records map[savestream.RecordType][]byte // the newest of each
	sent    []int                            // pages with content in each checkpoint
}

func (m *image) ReadFrom(r io.Reader) (int64, error) {
	m.pages, m.records = map[uint64][32]byte{}, map[savestream.RecordType][]byte{}
	d := savestream.NewDecoder(r)
	var err error
	if m.header, err = d.Header(); err != nil {
		return 0, err
	}
	n := 0
	for {
		rec, err := d.Next()
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF) && d.AtCheckpoint():
			return 0, nil
		case err != nil:
			return 0, err
		case rec.Type == savestream.PageDataType:
			pd, err := savestream.ParsePageData(rec.Body)
			if err != nil {
				return 0, err
			}
			for e, page := range pd.All() {
				if page != nil {
					m.pages[e.PFN] = sha256.Sum256(page)
					if m.content != nil {
						m.content[e.PFN] = slices.Clone(page)
					}
					n++
				}
			}
		default:
			m.records[rec.Type] = slices.Clone(rec.Body)
			if rec.Type == savestream.Checkpoint {
				m.sent = append(m.sent, n)
				n = 0
			}
		}
	}
}

// The image that our capture makes of a domain in some checkpoints is the one that libxc
// makes of it at once, while it is still suspended: page for page, record for record.
func TestLabCapture(t *testing.T) {
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	all, err := h.Domains()
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v: one domain is wanted", all, err)
	}
	g := h.Guest(all[0])
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	var pauses []time.Duration
	var asked, suspended time.Time
	left := 8
	hooks := xlft.SaveHooks{
		Suspend: func() (err error) {
			asked, err = g.Suspend(ctx)
			suspended = time.Now()
			return err
		},
		Captured: func() error {
			done := time.Now()
			left--
			if left == 0 {
				return nil
			}
			err := g.Resume()
			t.Logf("asked to suspended %v, capture %v, resume %v", suspended.Sub(asked), done.Sub(suspended), time.Since(done))
			pauses = append(pauses, time.Since(asked))
			return err
		},
		Next: func() bool {
			if left == 0 {
				return false
			}
			<-time.After(300 * time.Millisecond)
			return true
		},
		Polled: func(err error) { t.Error(err) },
	}
	ours, theirs := image{content: map[uint64][]byte{}}, image{}
	if err := g.Save(ctx, &ours, hooks); err != nil {
		t.Fatal(err)
	}
	defer g.Resume()
	begun := time.Now()
	err = g.saveByLibxc(ctx, &theirs, xlft.SaveHooks{
		Suspend:  func() error { return nil },
		Captured: func() error { return nil },
		Next:     func() bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(pauses)
	t.Logf("pages in each checkpoint: %v; pauses %v; libxc's whole save took %v", ours.sent, pauses, time.Since(begun))

	if ours.header != theirs.header {
		t.Errorf("header %+v, libxc's %+v", ours.header, theirs.header)
	}
	if len(ours.pages) != len(theirs.pages) || len(ours.pages) < 1000 {
		t.Errorf("%d pages, libxc has %d", len(ours.pages), len(theirs.pages))
	}
	var other []uint64
	for pfn, sum := range theirs.pages {
		if ours.pages[pfn] != sum {
			other = append(other, pfn)
		}
	}
	slices.Sort(other)
	src, err := g.source()
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	for _, p := range other {
		now, err := src.Map([]uint64{p})
		if err != nil {
			t.Fatal(err)
		}
		was := ours.content[p]
		first, last, n := -1, -1, 0
		for i := range now {
			if now[i] != was[i] {
				if first < 0 {
					first = i
				}
				last = i
				n++
			}
		}
		t.Logf("page %#x: %d bytes differ, %d to %d: was %x, is %x", p, n, first, last, was[max(first, 0):][:16], now[max(first, 0):][:16])
		src.Unmap(now)
	}
	if len(other) > 0 {
		t.Errorf("%d pages differ: %#x", len(other), other[:min(20, len(other))])
	}
	for typ, body := range theirs.records {
		switch mine := ours.records[typ]; typ {
		case savestream.X86TSCInfo: // it has the time
			if len(mine) != len(body) || !bytes.Equal(mine[:8], body[:8]) || !bytes.Equal(mine[16:], body[16:]) {
				t.Errorf("%v is %x, libxc's %x", typ, mine, body)
			}
		case savestream.HVMContext: // it has counters that run on
			differ := 0
			for i := range min(len(mine), len(body)) {
				if mine[i] != body[i] {
					differ++
				}
			}
			if len(mine) != len(body) || differ > 64 {
				t.Errorf("%v: %d bytes, libxc's %d; %d differ", typ, len(mine), len(body), differ)
			}
			t.Logf("%v: %d of %d bytes differ", typ, differ, len(body))
		default:
			if !bytes.Equal(mine, body) {
				t.Errorf("%v is %x, libxc's %x", typ, mine, body)
			}
		}
	}
	if len(ours.records) != len(theirs.records) {
		t.Errorf("%d kinds of records, libxc's %d", len(ours.records), len(theirs.records))
	}
}

package simxen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"xlft/savestream"

	"xlft/xlft/backup"
	"xlft/xlft/wire"
)

// A Restorer creates replicas on a host, as libxl and libxc do: records are kept until a checkpoint is complete, then
// applied.
type Restorer struct {
	P *Process
	// Torn is a broken variant: a page of each checkpoint is left out.
	Torn bool
	// Slow is the time that applying a checkpoint takes.
	Slow time.Duration
	// Freeing is the time that destroying a replica takes.
	Freeing time.Duration
	// Unfit lists the reasons why the host can't take a domain, if any.
	Unfit []wire.Problem
}

func (r *Restorer) Check(_ context.Context, o wire.Offer) []wire.Problem {
	if d := r.P.h.Domain(o.Domain); d != nil && d.Runs() {
		return append(r.Unfit, wire.Problem{What: "a domain of that name is there already"})
	}
	return r.Unfit
}

// Find finds no replica, because replicas die with the process that created them.
func (r *Restorer) Find(domain, _ string) (backup.Found, error) {
	if d := r.P.h.Domain(domain); d != nil && !d.Gone() {
		return backup.FoundDomain, nil
	}
	return backup.FoundNothing, nil
}

// Ran looks at the host's note of the newest replica, which a power cut erases.
func (r *Restorer) Ran(domain, _ string) (backup.Ran, error) {
	h := r.P.h
	h.mu.Lock()
	defer h.mu.Unlock()
	ran, ok := h.ran[domain]
	switch {
	case !ok:
		return backup.RanUnknown, nil
	case ran:
		return backup.RanOnce, nil
	}
	return backup.RanNot, nil
}

// Abandon has nothing to do: see Find.
func (r *Restorer) Abandon(string) error { return nil }

// note remembers whether the host's newest replica of a domain came to run.
func (h *Host) note(domain string, ran bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ran[domain] = ran
}

func (r *Restorer) Restore(_ context.Context, o wire.Offer) (backup.Replica, error) {
	if r.P.Dead() || r.P.h.Down() {
		return nil, errDead
	}
	r.P.h.note(o.Domain, false)
	pr, pw := io.Pipe()
	v := &replica{
		r: r, name: o.Domain, pr: pr, pw: pw,
		failed: make(chan error, 1), applied: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	go v.restore()
	return v, nil
}

// maxPages bounds a domain: 8 GiB.
const maxPages = 2 << 20

type replica struct {
	r       *Restorer
	name    string
	pr      *io.PipeReader
	pw      *io.PipeWriter
	failed  chan error
	applied chan struct{} // a checkpoint record was processed
	ended   chan struct{}

	mu      sync.Mutex
	pages   [][]byte // the newest complete state
	run     bool
	discard bool
}

func (v *replica) restore() {
	defer close(v.ended)
	dec := savestream.NewDecoder(v.pr)
	var pending []savestream.Record
	apply := func(live bool, rs ...savestream.Record) error {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, r := range rs {
			pd, err := savestream.ParsePageData(r.Body)
			if err != nil {
				return err
			}
			for e, data := range pd.All() {
				if v.r.Torn && !live && e.PFN == 0 {
					continue
				}
				if e.PFN >= maxPages {
					return fmt.Errorf("simxen: pfn %#x is not the domain's", e.PFN)
				}
				for uint64(len(v.pages)) <= e.PFN {
					v.pages = append(v.pages, nil)
				}
				if v.pages[e.PFN] == nil {
					if bytes.Equal(data, zeroPage[:]) {
						continue
					}
					v.pages[e.PFN] = make([]byte, PageSize)
				}
				copy(v.pages[e.PFN], data)
			}
		}
		return nil
	}
	first := true
	for {
		r, err := dec.Next()
		if err != nil {
			v.mu.Lock()
			wanted := v.run || v.discard
			v.mu.Unlock()
			if !wanted {
				v.failed <- fmt.Errorf("simxen: restore: %w", err)
			}
			v.pr.CloseWithError(err)
			return
		}
		switch r.Type {
		case savestream.PageDataType:
			if first {
				if err := apply(true, r); err != nil {
					v.failed <- err
					v.pr.CloseWithError(err)
					return
				}
			} else {
				r.Body = bytes.Clone(r.Body)
				pending = append(pending, r)
			}
		case savestream.Checkpoint:
			if err := apply(false, pending...); err != nil {
				v.failed <- err
				v.pr.CloseWithError(err)
				return
			}
			pending, first = nil, false
			v.applied <- struct{}{}
		}
	}
}

func (v *replica) Write(b []byte) (int, error) {
	if v.r.P.Dead() {
		return 0, errDead
	}
	return v.pw.Write(b)
}

func (v *replica) Checkpoint() error {
	select {
	case <-v.applied:
		v.mu.Lock()
		count, sum := state(v.pages)
		v.mu.Unlock()
		v.r.P.h.outside.given(v.name, count, sum)
		time.Sleep(v.r.Slow)
		return nil
	case <-v.ended:
		return errors.New("simxen: the restore has ended")
	}
}

func (v *replica) Activate(context.Context) error {
	if v.r.P.Dead() || v.r.P.h.Down() {
		return errDead
	}
	v.mu.Lock()
	v.run = true
	v.mu.Unlock()
	v.pw.Close()
	<-v.ended
	h := v.r.P.h
	h.work()
	if v.r.P.Dead() {
		return errDead
	}
	h.note(v.name, true)
	v.mu.Lock()
	pages := v.pages
	v.mu.Unlock()
	h.outside.restored(hash(pages))
	if len(pages) > 0 && !h.outside.NoDisks {
		h.outside.checkDisk(pages[0], h.platter)
	}
	d := h.domain(v.name, 0)
	d.pages = pages
	count, sum := d.state()
	h.outside.mu.Lock()
	parent := h.outside.parent(v.name, count, sum)
	h.outside.mu.Unlock()
	d.suspended = true
	d.life = h.outside.birth(d, parent, count, sum)
	d.mu.Lock()
	d.suspended = false
	d.mu.Unlock()
	d.run()
	return nil
}

// parent returns the newest life of a domain that was in this state.
func (o *Outside) parent(name string, count, sum uint64) (newest *life) {
	for _, l := range slices.Backward(o.lives) {
		if l.domain.Name != name {
			continue
		}
		if s, ok := l.sums[count]; ok && s == sum {
			return l
		}
		if newest == nil {
			newest = l
		}
	}
	return newest
}

func (v *replica) Destroy() error {
	v.r.P.h.outside.lostReplica(v.name)
	v.mu.Lock()
	v.discard = true
	v.mu.Unlock()
	time.Sleep(v.r.Freeing)
	v.r.P.h.work()
	v.pw.Close()
	v.pr.Close()
	return nil
}

func (v *replica) Failed() <-chan error { return v.failed }

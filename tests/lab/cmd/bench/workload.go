//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"sync"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

// A row is one kind of work.
type row struct {
	name, unit string
	work       func(ctx context.Context, b *bench) (rate float64, latencies []time.Duration, err error)
	watch      time.Duration // for so long the guest is only looked at, after work has begun something
	after      func() error  // ends that
}

// workload is the lab's small Linux guest (tests/lab/workload).
type workload struct {
	g      lab.Guest
	client *probe.Client
}

func (w *workload) guest() lab.Guest { return w.g }

func (w *workload) boot(ctx context.Context, b *bench) error {
	w.g = lab.NewGuest("web1", 10)
	w.g.Kernel = b.kernel
	if err := b.home.CreateGuest(ctx, w.g); err != nil {
		return err
	}
	var err error
	w.client, err = w.dial(ctx, b)
	return err
}

func (w *workload) dial(ctx context.Context, b *bench) (*probe.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := b.DialGuest(ctx, w.g)
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(20 * time.Minute))
}

func (w *workload) reconnect(ctx context.Context, b *bench) (err error) {
	w.client.Close()
	w.client, err = w.dial(ctx, b)
	return err
}

func (w *workload) halt(ctx context.Context, b *bench) error {
	w.client.Close()
	_, err := b.home.Run(ctx, "xl", "destroy", w.g.Name)
	return err
}

func (w *workload) standstill() (time.Duration, error) { return w.client.Stall() }

const workingSet = 2000 // pages that are written round and round

func (w *workload) rows(b *bench) []row {
	var all []row
	add := func(r row) {
		if b.rows.MatchString(r.name) {
			all = append(all, r)
		}
	}
	nothing := func(context.Context, *bench) (float64, []time.Duration, error) { return 0, nil, nil }
	add(row{name: "idle", work: nothing, watch: b.each, after: func() error { return nil }})
	rates := []int{200, 500, 2000}
	if b.short {
		rates = rates[1:2]
	}
	for _, n := range rates {
		add(row{
			name: fmt.Sprintf("%d pages written a second", n), watch: b.each,
			work: func(context.Context, *bench) (float64, []time.Duration, error) {
				return 0, nil, w.client.Dirty(n, workingSet)
			},
			after: func() error { return w.client.Dirty(0, 0) },
		})
	}
	for _, n := range []int{1, 10, 100} {
		if b.short && n == 10 {
			continue
		}
		add(row{name: fmt.Sprintf("questions, %d connections", n), unit: "answers/s",
			work: func(ctx context.Context, b *bench) (float64, []time.Duration, error) { return w.questions(ctx, b, n) }})
	}
	add(row{name: "bulk out", unit: "Mbit/s", work: w.bulkOut})
	add(row{name: "bulk in", unit: "Mbit/s", work: w.bulkIn})
	add(row{name: "gettimeofday", unit: "calls/s", work: func(context.Context, *bench) (float64, []time.Duration, error) {
		n, err := w.client.Spin(b.each)
		return float64(n) / b.each.Seconds(), nil, err
	}})
	add(row{name: "orders, 64 under way", unit: "orders/s", work: w.orders})
	return all
}

// questions asks over n connections, each of which waits for its answer.
func (w *workload) questions(ctx context.Context, b *bench, n int) (float64, []time.Duration, error) {
	clients := make([]*probe.Client, n)
	var dials sync.WaitGroup
	errs := make([]error, n)
	for i := range clients {
		dials.Go(func() { clients[i], errs[i] = w.dial(ctx, b) })
	}
	dials.Wait()
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.Close()
			}
		}
	}()
	if err := errors.Join(errs...); err != nil {
		return 0, nil, err
	}
	return closedLoop(n, b.each, func(i int) error {
		if err := clients[i].SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		_, err := clients[i].Get()
		return err
	})
}

// closedLoop has n callers call ask again and again, for so long. It returns the calls a second, and how long each took.
func closedLoop(n int, d time.Duration, ask func(i int) error) (float64, []time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var callers sync.WaitGroup
	begun := time.Now()
	for i := range n {
		callers.Go(func() {
			for {
				at := time.Now()
				if at.Sub(begun) > d {
					return
				}
				err := ask(i)
				took := time.Since(at)
				mu.Lock()
				all, failed = append(all, took), errors.Join(failed, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	callers.Wait()
	return float64(len(all)) / time.Since(begun).Seconds(), all, failed
}

const mbit = 1e6 / 8

func (w *workload) bulkOut(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	c, err := w.dial(ctx, b)
	if err != nil {
		return 0, nil, err
	}
	n, err := c.Bulk(b.each/2, b.each)
	return float64(n) / mbit / b.each.Seconds(), nil, err
}

func (w *workload) bulkIn(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	c, err := w.dial(ctx, b)
	if err != nil {
		return 0, nil, err
	}
	in, err := c.Sink()
	if err != nil {
		return 0, nil, err
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for buf := make([]byte, 64<<10); ; {
			if _, err := in.Write(buf); err != nil {
				return // closed below
			}
		}
	}()
	defer func() { in.Close(); <-stopped }()
	if err := wait(ctx, b.each/2); err != nil {
		return 0, nil, err
	}
	// By the guest's own clock: the answers wait for checkpoints.
	n0, at0, err := w.client.Sunk()
	if err != nil {
		return 0, nil, err
	}
	if err := wait(ctx, b.each); err != nil {
		return 0, nil, err
	}
	n1, at1, err := w.client.Sunk()
	return float64(n1-n0) / mbit / (at1 - at0).Seconds(), nil, err
}

const underWay = 64

// orders are numbers that the guest adds to its state, of which the answer tells: none may be lost.
func (w *workload) orders(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	c, err := w.dial(ctx, b)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	before, err := c.Get()
	if err != nil {
		return 0, nil, err
	}
	begun := time.Now()
	s := c.Stream(rand.Uint64N(1<<32), underWay)
	if err := wait(ctx, b.each); err != nil {
		return 0, nil, err
	}
	_, received, _ := s.Counts()
	took := time.Since(begun)
	replies, err := s.Stop(patience)
	if err != nil {
		return 0, nil, err
	}
	after, err := w.client.Get()
	if err != nil {
		return 0, nil, err
	}
	if untrue, wrong := probe.Judge(before, after, replies); untrue > 0 {
		return 0, nil, fmt.Errorf("%d untrue answers: %w", untrue, wrong)
	}
	return float64(received) / took.Seconds(), nil, nil
}

// dies has the host die while orders come in.
func (w *workload) dies(ctx context.Context, b *bench) (d death, err error) {
	c, err := w.dial(ctx, b)
	if err != nil {
		return d, err
	}
	before, err := c.Get()
	if err != nil {
		return d, err
	}
	cables, err := b.Capture(lab.SentBy(w.g))
	if err != nil {
		return d, err
	}
	s := c.Stream(1, underWay)
	if err := wait(ctx, b.each/2); err != nil {
		return d, err
	}
	old := b.home
	old.Kill()
	died := time.Now()
	b.home = b.Peer(old)
	err = b.until(ctx, func() error {
		r, ok := probe.After(s.Replies(), died.Add(100*time.Millisecond)) // what was on the wire has come by then
		if !ok {
			return errors.New("no reply came from the other host")
		}
		d.Reply = r.At.Sub(died)
		return nil
	})
	if err != nil {
		return d, err
	}
	replies, err := s.Stop(patience)
	if err != nil {
		return d, err
	}
	frames, err := cables.Stop()
	if err != nil {
		return d, err
	}
	for _, f := range frames {
		if f.Host == b.home && f.Time.After(died) && !f.Announces() {
			d.Spoke = f.Time.Sub(died)
			break
		}
	}
	w.client.Close()
	if w.client, err = w.dial(ctx, b); err != nil {
		return d, err
	}
	after, err := w.client.Get()
	if err != nil {
		return d, err
	}
	d.Answered = len(replies)
	var wrong error
	if d.Untrue, wrong = probe.Judge(before, after, replies); wrong != nil {
		log.Printf("  %v", wrong)
	}
	return d, b.revive(ctx, old)
}

// revive brings a dead host back, with xlft on it.
func (b *bench) revive(ctx context.Context, h *lab.Host) error {
	if err := h.Revive(ctx); err != nil {
		return err
	}
	return ft.Reinstall(ctx, h, b.saved[h])
}

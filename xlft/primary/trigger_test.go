package primary

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"xlft/xlft"
)

// pages is a guest of which only the written pages count, and a gate of which
// only what waits does.
type pages struct {
	xlft.Guest
	xlft.Gate
	dirty, held uint64
}

func (p *pages) DirtyPages() (uint64, error)           { return p.dirty, nil }
func (p *pages) Held() (held, limit uint64, err error) { return p.held, 100, nil }

// fired runs a trigger for a second, and returns what asked for a checkpoint
// first, and after what time.
func fired(t *testing.T, setUp func(*trigger, *pages)) (why Why, after time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		p := &pages{}
		g := &trigger{epochMax: 200 * time.Millisecond, dirtyMax: 50, guest: p, gate: p}
		setUp(g, p)
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		g.run(ctx, func(w Why) {
			if why == "" {
				why, after = w, time.Since(begun)
			}
		}, func(err error) { t.Error(err) })
	})
	return why, after
}

func TestTrigger(t *testing.T) {
	open := func(g *trigger) {
		g.captured(time.Now())
		g.open()
	}
	for _, c := range []struct {
		name  string
		setUp func(*trigger, *pages)
		want  Why
		after time.Duration
	}{
		{"no epoch is open", func(g *trigger, p *pages) { p.dirty, p.held = 1000, 100 }, "", 0},
		{"the checkpoint is not acked", func(g *trigger, p *pages) { g.captured(time.Now()); p.dirty = 1000 }, "", 0},
		{"not protected any more", func(g *trigger, p *pages) { open(g); g.close(); p.dirty = 1000 }, "", 0},
		{"the epoch gets old", func(g *trigger, p *pages) { open(g); p.dirty, p.held = 49, 50 }, WhyInterval, 200 * time.Millisecond},
		{"its age counts from the resume, not from the ack", func(g *trigger, p *pages) {
			g.captured(time.Now())
			time.Sleep(150 * time.Millisecond)
			g.open()
		}, WhyInterval, 50 * time.Millisecond},
		{"many pages", func(g *trigger, p *pages) { open(g); p.dirty = 50 }, WhyDirty, maxPoll},
		{"no limit on pages", func(g *trigger, p *pages) { open(g); g.dirtyMax = 0; p.dirty = 1 << 40 }, WhyInterval, 200 * time.Millisecond},
		{"a gate fills up", func(g *trigger, p *pages) { open(g); p.held = 51 }, WhyBacklog, maxPoll},
		{"output waits", func(g *trigger, p *pages) {
			output := make(chan struct{}, 1)
			output <- struct{}{}
			open(g)
			g.output = output
		}, WhyOutput, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			why, after := fired(t, c.setUp)
			if late := after - c.after; why != c.want || late < 0 || late > maxPoll {
				t.Errorf("%q after %v, want %q after %v", why, after, c.want, c.after)
			}
		})
	}
}

// Whoever waits for a ring's values gets the newest ones.
func TestRing(t *testing.T) {
	var r ring[uint64]
	for i := range uint64(samples + 10) {
		r.add(i)
	}
	if len(r.all) != samples || slices.Contains(r.all, 9) || !slices.Contains(r.all, 10) || !slices.Contains(r.all, samples+9) {
		t.Errorf("%d values, oldest %d", len(r.all), slices.Min(r.all))
	}
	if m := median(r.all); m < samples/2 || m > samples/2+20 {
		t.Errorf("median %d", m)
	}
}

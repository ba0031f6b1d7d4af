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
	looks       int // at dirty
	perLook     uint64
}

func (p *pages) DirtyPages() (uint64, error) {
	p.looks++
	p.dirty += p.perLook
	return p.dirty, nil
}

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
		{"a checkpoint's memory", func(g *trigger, p *pages) { open(g); g.dirtyMax, g.memory, p.dirty = 0, 100*bytesPerPage, 54 }, WhyFull, maxPoll},
		{"half a checkpoint's memory", func(g *trigger, p *pages) {
			open(g)
			g.dirtyMax, g.memory, p.dirty, p.looks = 0, 100*bytesPerPage, 39, 1
		}, WhyInterval, 200 * time.Millisecond},
		{"a checkpoint's memory at the next look", func(g *trigger, p *pages) { open(g); g.dirtyMax, g.memory, p.perLook = 0, 100*bytesPerPage, 50 }, WhyFull, maxPoll},
		{"a checkpoint's memory, while one is in flight", func(g *trigger, p *pages) {
			g.captured(time.Now())
			g.memory, p.dirty = 100*bytesPerPage, 81
		}, WhyFull, maxPoll},
		{"less memory, while one is in flight", func(g *trigger, p *pages) {
			g.captured(time.Now())
			g.memory, p.dirty = 100*bytesPerPage, 40
		}, "", 0},
		{"less memory, after one was too large", func(g *trigger, p *pages) {
			g.captured(time.Now())
			g.overflowed()
			g.memory, p.dirty = 100*bytesPerPage, 41
		}, WhyFull, maxPoll},
		{"a gate at its limit, while a checkpoint is in flight", func(g *trigger, p *pages) { g.captured(time.Now()); p.held = 100 }, WhyFull, maxPoll},
		{"a gate below its limit, while a checkpoint is in flight", func(g *trigger, p *pages) { g.captured(time.Now()); p.held = 99 }, "", 0},
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

// Xen stops the domain for each look at its dirty pages: there are at most 20 a
// second, and four an epoch, also while a checkpoint is in flight. After a
// checkpoint that was too large there are twice as many.
func TestLooks(t *testing.T) {
	for _, c := range []struct {
		epochMax time.Duration
		caution  int
		most     int
	}{
		{16 * time.Millisecond, 0, 20}, {200 * time.Millisecond, 0, 20}, {time.Second, 0, 4}, {200 * time.Millisecond, 2, 80}, {time.Second, 1, 8},
	} {
		for _, flight := range []bool{false, true} {
			var p *pages
			fired(t, func(g *trigger, q *pages) {
				p = q
				g.epochMax, g.dirtyMax, g.memory = c.epochMax, 1000, 1<<30
				for range c.caution {
					g.overflowed()
				}
				g.captured(time.Now().Add(time.Hour)) // the epoch does not get old
				if !flight {
					g.open()
				}
			})
			if p.looks > c.most+1 || p.looks < c.most/2 {
				t.Errorf("epoch_max %v, caution %d, in flight %v: %d looks in a second, not %d", c.epochMax, c.caution, flight, p.looks, c.most)
			}
		}
	}
}

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

func (p *pages) Held() (held, limit uint64, err error) { return p.held << 20, 100 << 20, nil }

// interval is the pacing of the tests that are about anything but events.
var interval = xlft.Pacing{Mode: xlft.ModeInterval, EpochMax: 200 * time.Millisecond, DirtyMax: 50}

// runs begins the epoch of a domain that has just resumed, and opens it.
func (t *trigger) begin() {
	t.take()
	t.sealing()
	t.resume(0)
	t.captured()
}

func (t *trigger) beginOpen() {
	t.begin()
	t.open()
}

// fired runs a trigger for a second, and returns what asked for a checkpoint
// first, and after what time.
func fired(t *testing.T, setUp func(*trigger, *pages)) (why Why, after time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		p := &pages{}
		g := newTrigger(p, p, nil, 0, interval)
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
	firstLook := interval.EpochMax / 2
	for _, c := range []struct {
		name  string
		setUp func(*trigger, *pages)
		want  Why
		after time.Duration
	}{
		{"no epoch is open", func(g *trigger, p *pages) { p.dirty, p.held = 1000, 100 }, "", 0},
		{"the checkpoint is not acked", func(g *trigger, p *pages) { g.begin(); p.dirty = 1000 }, "", 0},
		{"not protected any more", func(g *trigger, p *pages) { g.beginOpen(); g.close(); p.dirty = 1000 }, "", 0},
		{"asked for already", func(g *trigger, p *pages) { g.beginOpen(); g.take(); p.dirty = 1000 }, "", 0},
		{"the epoch gets old", func(g *trigger, p *pages) { g.beginOpen(); p.dirty, p.held = 30, 50 }, WhyInterval, 200 * time.Millisecond},
		{"its age counts from the resume, not from the ack", func(g *trigger, p *pages) {
			g.begin()
			time.Sleep(150 * time.Millisecond)
			g.open()
		}, WhyInterval, 50 * time.Millisecond},
		{"many pages", func(g *trigger, p *pages) { g.beginOpen(); p.dirty = 50 }, WhyDirty, firstLook},
		{"many pages, as in the epochs before", func(g *trigger, p *pages) {
			g.beginOpen()
			g.pages.ran = 100 * time.Millisecond
			g.wrote(50)
			p.dirty = 50
		}, WhyDirty, 75 * time.Millisecond},
		{"no limit on pages", func(g *trigger, p *pages) { g.beginOpen(); g.pacing.DirtyMax = 0; p.dirty = 1 << 40 }, WhyInterval, 200 * time.Millisecond},
		{"a gate fills up", func(g *trigger, p *pages) { g.beginOpen(); p.held = 51 }, WhyBacklog, 0},
		{"a checkpoint's memory", func(g *trigger, p *pages) {
			g.beginOpen()
			g.pacing.DirtyMax, g.memory, p.dirty = 0, 100*bytesPerPage, 54
		}, WhyFull, firstLook},
		{"half a checkpoint's memory", func(g *trigger, p *pages) {
			g.beginOpen()
			g.pacing.DirtyMax, g.memory, p.dirty = 0, 100*bytesPerPage, 39
		}, WhyInterval, 200 * time.Millisecond},
		{"a checkpoint's memory at the next look", func(g *trigger, p *pages) {
			g.beginOpen()
			g.pacing.DirtyMax, g.memory, p.perLook = 0, 100*bytesPerPage, 60
		}, WhyFull, firstLook},
		{"a checkpoint's memory, while one is in flight", func(g *trigger, p *pages) {
			g.begin()
			g.memory, p.dirty = 100*bytesPerPage, 81
		}, WhyFull, firstLook},
		{"less memory, while one is in flight", func(g *trigger, p *pages) {
			g.begin()
			g.memory, p.dirty = 100*bytesPerPage, 40
		}, "", 0},
		{"less memory, after one was too large", func(g *trigger, p *pages) {
			g.begin()
			g.overflowed()
			g.memory, p.dirty = 100*bytesPerPage, 41
		}, WhyFull, firstLook / 2},
		{"a gate at its limit, while a checkpoint is in flight", func(g *trigger, p *pages) { g.begin(); p.held = 100 }, WhyFull, 0},
		{"a gate at its limit, while nobody knows who owns the domain", func(g *trigger, p *pages) { g.begin(); g.watch(); p.held = 100 }, WhyFull, 0},
		{"a gate below its limit, while a checkpoint is in flight", func(g *trigger, p *pages) { g.begin(); p.held = 99 }, "", 0},
		{"what is captured late changes nothing", func(g *trigger, p *pages) {
			g.take()
			g.sealing()
			g.resume(0)
			g.watch()
			g.captured()
			g.memory, p.dirty = 100*bytesPerPage, 1000 // too much for a checkpoint in flight
		}, "", 0},
		{"a domain that stands still writes nothing", func(g *trigger, p *pages) {
			g.beginOpen()
			g.take()
			g.sealing()
			g.captured()
			g.open()
			p.dirty = 1000
		}, "", 0},
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

// Xen stops the domain for each look at its dirty pages. A domain that writes little
// is looked at twice an epoch, and twice a second if epochs are longer; one that writes
// much when it matters; epochs that are shorter than a look is worth are not looked at.
// After a checkpoint that was too large there are twice as many looks.
func TestLooks(t *testing.T) {
	for _, c := range []struct {
		name     string
		epochMax time.Duration
		perLook  uint64
		before   uint64 // pages in an epoch of 100 ms before
		caution  int
		flight   int // looks in a second in which no checkpoint can be taken
		open     int // looks in a second of epochs that end as they should
	}{
		{name: "short epochs", epochMax: 40 * time.Millisecond, flight: 20, open: 0},
		{name: "usual epochs", epochMax: 200 * time.Millisecond, flight: 10, open: 5},
		{name: "long epochs", epochMax: time.Second, flight: 2, open: 1},
		{name: "longer epochs", epochMax: time.Minute, flight: 2, open: 2},
		{name: "one was too large", epochMax: time.Second, caution: 1, flight: 4, open: 3},
		{name: "two were too large", epochMax: 200 * time.Millisecond, caution: 2, flight: 40, open: 35},
		{name: "it wrote fast before, and does not now", epochMax: time.Second, before: 1000, flight: 2, open: 2},
		{name: "it writes fast", epochMax: time.Second, perLook: 400, before: 1000, flight: 18, open: 12},
	} {
		for phase, want := range map[phase]int{flight: c.flight, open: c.open} {
			t.Run(c.name, func(t *testing.T) {
				p := &pages{perLook: c.perLook}
				synctest.Test(t, func(t *testing.T) {
					g := newTrigger(p, p, nil, 1250*bytesPerPage, xlft.Pacing{EpochMax: c.epochMax, DirtyMax: 1000}) // four fifths are 1000
					for range c.caution {
						g.overflowed()
					}
					g.begin()
					if c.before > 0 {
						g.pages.ran = 100 * time.Millisecond
						g.wrote(c.before)
					}
					g.phase = phase
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					g.run(ctx, func(Why) {
						if phase == open {
							p.dirty = 0
							g.beginOpen()
						}
					}, func(err error) { t.Error(err) })
				})
				if p.looks < want-1 || p.looks > want+1 {
					t.Errorf("in phase %d: %d looks in a second, not %d", phase, p.looks, want)
				}
			})
		}
	}
}

// A gate that holds little is looked at seldom, one that fills or that alone says what the
// domain sends often.
func TestGateLooks(t *testing.T) {
	const poll = 25 * time.Millisecond
	for _, c := range []struct {
		name   string
		held   func(at time.Duration) uint64 // of 100
		polled bool
		least  int // looks in the first second
		most   int
	}{
		{"nothing", func(time.Duration) uint64 { return 0 }, false, 10, 12},
		{"nothing, and nobody else tells", func(time.Duration) uint64 { return 0 }, true, 40, 41},
		{"a quarter", func(time.Duration) uint64 { return 25 }, false, 38, 41},
		{"half in a second", func(at time.Duration) uint64 { return uint64(50 * at / time.Second) }, false, 15, 32},
	} {
		p := &pages{}
		var g gateLooks
		m := moment{now: time.Now(), Pacing: xlft.Pacing{EpochMax: time.Second}}
		looks, missed := 0, false
		for begun := m.now; m.now.Sub(begun) < time.Second; {
			p.held = c.held(m.now.Sub(begun))
			fill, err := g.look(&m, p, func() bool { return c.polled })
			if err != nil {
				t.Fatal(err)
			}
			looks++
			next := g.next(&m)
			if next.Sub(m.now) < poll || next.Sub(m.now) > calmPoll {
				t.Errorf("%s: the next look is after %v", c.name, next.Sub(m.now))
			}
			missed = missed || fill > 0.55
			m.now = next
		}
		if looks < c.least || looks > c.most || missed {
			t.Errorf("%s: %d looks in a second, want %d to %d; half full and not seen: %v", c.name, looks, c.least, c.most, missed)
		}
	}
}

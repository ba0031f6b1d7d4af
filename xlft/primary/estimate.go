package primary

import (
	"slices"
	"time"

	"xlft/xlft"
)

// pauses are how long the last checkpoints stopped the domain.
type pauses struct {
	last [8]time.Duration
	n    int
}

func (p *pauses) add(d time.Duration) {
	p.last[p.n%len(p.last)] = d
	p.n++
}

// usual is the median: one checkpoint that took long, for whatever reason, says
// nothing about the next. 0 if there was none.
func (p *pauses) usual() time.Duration { return median(p.last[:min(p.n, len(p.last))]) }

// pageRate is how many pages a second the domain wrote in the last epochs.
type pageRate struct {
	last [4]float64
	n    int
	ran  time.Duration // how long the domain ran in the epoch sealed last
}

func (r *pageRate) add(pages uint64) {
	r.last[r.n%len(r.last)] = float64(pages) / max(r.ran, time.Millisecond).Seconds()
	r.n++
}

// most is the highest of them.
func (r *pageRate) most() float64 { return slices.Max(r.last[:]) }

// looks are the looks at the dirty pages of the running epoch. Xen stops all of the
// domain's vCPUs for each. So the first one comes when by the rate of the epochs
// before most of the limit would be written, and each further one when by what was
// seen most of the rest would be; and all of them at maxLook, since a domain may
// begin to write at any time.
type looks struct {
	at   time.Time // of the last one
	seen uint64
	rate float64 // pages a second up to then
}

const (
	minLook = 50 * time.Millisecond
	maxLook = 500 * time.Millisecond
)

// next returns when a look is worth its pause, if an epoch ends at limit pages;
// false if none is.
func (l *looks) next(m *moment, limit uint64) (time.Time, bool) {
	if limit == 0 || !m.runs || m.phase != open && m.phase != flight {
		return time.Time{}, false
	}
	from, rest, rate := m.resumed, limit, m.rate
	if l.at.After(m.resumed) {
		from, rest, rate = l.at, limit-min(l.seen, limit), l.rate
	}
	return from.Add(l.interval(m, rest, rate)), true
}

// interval is the time until the next look.
func (l *looks) interval(m *moment, rest uint64, rate float64) time.Duration {
	d := min(m.EpochMax/2, maxLook)
	if most := 0.75 * float64(rest); most < rate*d.Seconds() {
		d = time.Duration(most / rate * float64(time.Second))
	}
	return max(d, minLook) >> m.caution
}

// look notes what was seen, and returns how many pages may come until the next
// look.
func (l *looks) look(m *moment, n, limit uint64) (more uint64) {
	since, before := m.resumed, uint64(0)
	if l.at.After(m.resumed) {
		since, before = l.at, min(l.seen, n)
	}
	per := func(pages uint64, since time.Time) float64 {
		return float64(pages) / max(m.now.Sub(since), time.Millisecond).Seconds()
	}
	l.at, l.seen = m.now, n
	l.rate = max(per(n, m.resumed), per(n-before, since)) // it may have begun just now
	return uint64(l.rate * l.interval(m, limit-min(n, limit), l.rate).Seconds())
}

// most is how many written pages end the epoch, now that it is in its phase; 0: no
// number does.
func (t *trigger) most(m *moment) uint64 {
	var n uint64
	if t.memory > 0 {
		n = max(t.room(m.caution), 1)
	}
	if m.phase == open && m.DirtyMax > 0 && (n == 0 || m.DirtyMax < n) {
		n = m.DirtyMax
	}
	return n
}

// dirty counts the pages that the domain wrote in its present epoch, and how many
// may come until the next look. It is not ok if that is not worth a look now.
func (t *trigger) dirty(m *moment) (n, more uint64, ok bool) {
	limit := t.most(m)
	if at, worth := t.looks.next(m, limit); !worth || m.now.Before(at) {
		return 0, 0, false
	}
	n, err := t.guest.DirtyPages()
	if err != nil {
		return 0, 0, false // the next look is as soon
	}
	return n, t.looks.look(m, n, limit), true
}

// gateLooks are looks at what the gate holds. Each asks the kernel some questions for each
// network device, in a dom0 that may have one processor: while little is held, and what
// the domain sends is told, there are few.
type gateLooks struct {
	at     time.Time     // the last one
	fill   float64       // of the fullest gate's limit
	rate   float64       // at which that grew lately, a second, at most
	calm   time.Duration // between two looks while little is held
	failed int           // in a row
	polled bool          // what the domain sends is not told
}

// gateFailures is how many looks at a gate in a row have to fail.
const gateFailures = 3

// calmPoll is the longest time between two looks; it is shorter if calmRate, in bytes a
// second, would fill the gate before. The kernel has room beyond the limit.
const (
	calmPoll = 100 * time.Millisecond
	calmRate = 5e9 / 8
)

// next returns when the next look is due: before the gate is half full, should it fill
// twice as fast as it has.
func (g *gateLooks) next(m *moment) time.Time {
	every := m.poll()
	if !g.polled && g.failed == 0 && g.fill < 0.25 {
		calm := g.calm
		if g.rate > 0 {
			calm = min(calm, time.Duration((0.5-g.fill)/(2*g.rate)*float64(time.Second)))
		}
		every = max(every, calm)
	}
	return g.at.Add(every)
}

// look asks the gate. The error is of the last of several failed looks: one failed look
// may be the kernel's doing, since links come and go.
func (g *gateLooks) look(m *moment, gate xlft.Gate, polled func() bool) (fill float64, err error) {
	held, limit, err := gate.Held() // once
	since := m.now.Sub(g.at)
	g.at, g.polled = m.now, polled != nil && polled()
	if err != nil {
		if g.failed++; g.failed < gateFailures {
			err = nil
		}
		return 0, err
	}
	g.calm = calmPoll
	if limit > 0 {
		fill = float64(held) / float64(limit)
		g.calm = min(calmPoll, time.Duration(float64(limit)/calmRate*float64(time.Second)))
	}
	grew := (fill - g.fill) / max(since, time.Millisecond).Seconds()
	if g.rate = max(grew, g.rate*0.9); g.rate < 0.01 {
		g.rate = 0 // it would take most of a minute
	}
	g.fill, g.failed = fill, 0
	return fill, nil
}

// bytesPerPage is what a page takes in the stream: its data and its number.
const bytesPerPage = 4096 + 8

// room is how many pages are four fifths of what a checkpoint may take.
func (t *trigger) room(caution int) uint64 { return uint64(t.memory) * 4 / 5 >> caution / bytesPerPage }

// full: so many pages leave no room in a checkpoint.
func (t *trigger) full(pages uint64, caution int) bool {
	return t.memory > 0 && pages > t.room(caution)
}

package backup

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"xlft/xlft"
)

var (
	crashSeed   = flag.Uint64("crash.seed", 0, "only this schedule of the crash matrix")
	crashFirst  = flag.Uint64("crash.first", 0, "first seed of the crash matrix; 0: a new one")
	crashSeeds  = flag.Int("crash.seeds", 60, "schedules of the crash matrix")
	crashRounds = flag.Int("crash.rounds", 20, "rounds of interruption and resync by what is known to have changed")
)

// A crashWorld is one schedule: two hosts, and a domain that runs on one of them.
type crashWorld struct {
	t       *testing.T
	seed    uint64
	chance  *chance
	hosts   [2]*host
	durable bool

	mu      sync.Mutex
	lines   int
	values  uint64
	counts  map[string]int
	says    []string // what was done, for the log of a failure
	damaged bool
}

func (w *crashWorld) newLine() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines++
	return w.lines
}

func (w *crashWorld) newValue() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.values++
	return w.values
}

func (w *crashWorld) count(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what] += n
}

func (w *crashWorld) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.says = append(w.says, fmt.Sprintf(format, args...))
}

func (w *crashWorld) violate(format string, args ...any) {
	w.t.Errorf("-crash.seed=%d: %s", w.seed, fmt.Sprintf(format, args...))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.damaged = true
}

func (h *host) whenCut(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		f()
		return
	}
	h.atCut = append(h.atCut, f)
}

// Faults of a session.
type faultKind int

const (
	none faultKind = iota
	breaks
	flips
	backupCut
	primaryCut
	bothCut
	weakens
	fills
	fillsJournal
	receiverKilled
	serverKilled
	rottenSpill
	faultKinds
)

func (k faultKind) String() string {
	return []string{"none", "the connection breaks", "a bit flips on the way", "the backup's power is cut", "the primary's power is cut", "both hosts' power is cut", "the copy can't be written back", "the copy's storage is full", "the journal's storage is full", "the receiver is killed", "the disk server is killed", "the spill file rots"}[k]
}

type fault struct {
	kind  faultKind
	after int // operations of the storage, bytes, or microseconds
}

// upTo returns a number below a bound, of any magnitude.
func (c *chance) upTo(bound float64) int {
	return 1 + int(math.Exp(float64(c.n(1000))/1000*math.Log(bound)))
}

func (w *crashWorld) fault() fault {
	f := fault{kind: faultKind(w.chance.n(int(faultKinds)))}
	switch f.kind {
	case breaks, flips:
		f.after = w.chance.upTo(2e6)
	case backupCut, primaryCut, bothCut:
		f.after = w.chance.upTo(1500)
	default:
		f.after = w.chance.upTo(2e6)
	}
	return f
}

// arm lets a fault come. The function takes it away.
func (w *crashWorld) arm(g *guest, p *pairing, f fault) func() {
	set := func(h *host, n int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.down {
			h.cut = n
		}
	}
	later := func(do func()) func() {
		t := time.AfterFunc(time.Duration(f.after)*time.Microsecond, do)
		return func() { t.Stop() }
	}
	locked := func(do func()) func() {
		p.to.mu.Lock()
		defer p.to.mu.Unlock()
		do()
		return func() {}
	}
	switch f.kind {
	case backupCut:
		set(p.to, f.after)
	case primaryCut:
		set(g.host, f.after)
	case bothCut:
		set(p.to, f.after)
		p.to.whenCut(func() { go set(g.host, 1+w.chance.n(8)) })
	case weakens:
		return later(func() { locked(func() { p.to.m.weak = true }) })
	case fills:
		return later(func() { locked(func() { p.to.m.full = true }) })
	case fillsJournal:
		return later(func() { locked(func() { p.to.files.full = true }) })
	case receiverKilled:
		return later(func() { p.hand.kill(); p.conn.Close() })
	case serverKilled:
		return later(g.kill)
	}
	return func() {}
}

// mend takes all lasting faults from a host.
func (h *host) mend() {
	h.boot()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut, h.m.weak, h.m.full, h.files.full, h.atCut = 0, false, false, false, nil
}

// protected runs one session up to its end, and returns the domain, which may run
// on the other host then or nowhere.
func (w *crashWorld) protected(g *guest, to *host, f fault) *guest {
	w.say("%s to %s, %v after %d", g.host.name, to.name, f.kind, f.after)
	if w.chance.in(10) && to.recordNow().State == xlft.Consistent { // though the domain runs elsewhere
		w.promote(to)
	}
	if w.chance.in(2) { // the fault may come before the session stands
		if f.kind == backupCut || f.kind == bothCut {
			to.mu.Lock()
			to.cut = f.after
			to.mu.Unlock()
		}
	}
	p, err := g.protect(to, f)
	if err != nil {
		w.say("refused: %v", err)
		if !to.isDown() && w.chance.in(2) {
			w.invalidate(to)
		}
		return w.afterwards(g, nil)
	}
	w.count("sessions", 1)
	disarm := w.arm(g, p, f)
	err = w.epochs(g, p, f)
	w.say("it ends at %+v: %v", p.reached(), err)
	disarm()
	if w.chance.in(4) && err == nil { // power fails while the copy's record is written
		p.to.mu.Lock()
		p.to.cut = 1 + w.chance.n(10)
		p.to.mu.Unlock()
	}
	return w.afterwards(g, p)
}

// epochs lets the session run.
func (w *crashWorld) epochs(g *guest, p *pairing, f fault) error {
	if err := p.link.AwaitSync(); err != nil {
		return err
	}
	if p.link.Progress().Known {
		w.count("resyncs of what is known", 1)
	}
	if w.chance.in(8) {
		return nil
	}
	equal, on := w.chance.in(2), func() {}
	if equal {
		on = g.still()
	}
	err := p.epoch(g, 1, true)
	if err == nil && equal {
		err = w.compare(g, p.to)
	}
	on()
	if err != nil {
		return err
	}
	p.compare(f)
	for e := uint64(2); e < uint64(2+w.chance.n(12)); e++ {
		time.Sleep(time.Duration(w.chance.n(15000)) * time.Microsecond)
		if w.chance.in(8) {
			time.Sleep(1500 * time.Millisecond) // somebody looks at the copy
		}
		if w.durable && w.chance.in(40) {
			p.to.mu.Lock()
			p.to.files.rot(w.chance)
			p.to.mu.Unlock()
		}
		if err := p.epoch(g, e, w.chance.in(2)); err != nil {
			return err
		}
		if w.chance.in(3) {
			w.check(p.to, "while the session lasts")
		}
	}
	return nil
}

// compare checks that both disks are the same, on the copy's storage too.
func (w *crashWorld) compare(g *guest, to *host) error {
	g.host.mu.Lock()
	want, _ := g.host.m.image()
	down := g.host.down
	g.host.mu.Unlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	if down || to.down {
		return errNoPower
	}
	if s := differing(want, to.m.cache); s >= 0 {
		w.violate("sector %d: %#x on %s, %#x on %s after a first copy", s, want[s], g.host.name, to.m.cache[s], to.name)
	}
	if s := differing(want, to.m.stable); s >= 0 {
		w.violate("sector %d: %#x on %s, %#x on the storage of %s after a first copy", s, want[s], g.host.name, to.m.stable[s], to.name)
	}
	w.count("whole disks compared", 1)
	return nil
}

func (w *crashWorld) check(h *host, when string) {
	if err := h.check(when); err != nil {
		w.violate("%v", err)
	}
}

// invalidate gives a copy up, as "xlft disk invalidate" does.
func (w *crashWorld) invalidate(h *host) {
	p := h.hand()
	p.do(nil, func() error {
		h.record = diskRecordOf{DiskRecord: xlft.DiskRecord{State: xlft.Inconsistent, Failed: h.record.Failed}}
		return nil
	})
}

// afterwards ends a session, which may be nil, and decides who runs the domain.
func (w *crashWorld) afterwards(g *guest, p *pairing) *guest {
	a := g.host
	if p != nil {
		defer func() { w.check(p.to, "after the session") }()
		if a.isDown() && !p.to.isDown() && !p.hand.isKilled() && p.reached().acked > 0 && w.chance.n(3) > 0 {
			w.say("%s takes over", p.to.name)
			if w.chance.in(5) {
				p.to.mu.Lock()
				p.to.cut = 1 + w.chance.n(10)
				p.to.mu.Unlock()
			}
			won := p.takeOver()
			g.end()
			g.afterPowerCut()
			a.mend()
			if won || p.to.recordNow().State == xlft.UpToDate {
				return w.runs(p.to)
			}
			p.to.mend()
			return w.runs(a)
		}
		p.leave()
		w.check(p.to, "after the session") // as it is, before its power comes back
	}
	w.other(a).mend()
	if !a.isDown() {
		a.mend() // of a fault that is still to come
	} else {
		g.end()
		g.afterPowerCut()
		a.mend()
		return w.runs(a)
	}
	if w.chance.n(4) > 0 { // else the domain's output is still held, and the next session may go on
		g.newData()
	}
	return g
}

// promote makes a copy the domain's disk, by an operator's word.
func (w *crashWorld) promote(h *host) {
	s, rotten := h.recordNow().of, h.files.anyRotten()
	epoch, err := h.hand().promote()
	w.say("an operator promotes %s: %v", h.name, err)
	if err != nil {
		return
	}
	h.mu.Lock()
	values, unread := h.m.image()
	after, unreadAfter := h.m.afterPowerCut(h.chance).image()
	h.mu.Unlock()
	err = s.judge(values, unread, epoch, s.reached(), rotten)
	if err == nil {
		err = s.judge(after, unreadAfter, epoch, s.reached(), rotten)
	}
	if err != nil {
		w.violate("%s was promoted to epoch %d of %s (%+v): %v", h.name, epoch, s.id, s.reached(), err)
	}
	w.count("promotions", 1)
}

func (h *hand) isKilled() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.killed
}

// runs starts the domain on a host, and sometimes on the wrong one: from a disk
// that an operator promoted, or from one that is old.
func (w *crashWorld) runs(h *host) *guest {
	other := w.hosts[0]
	if other == h {
		other = w.hosts[1]
	}
	if w.chance.in(5) {
		other.mend()
		if other.recordNow().State == xlft.Consistent {
			w.promote(other)
		}
		if st := other.recordNow().State; st == xlft.UpToDate {
			w.say("the domain is run on %s, and should be on %s", other.name, h.name)
			h = other
		}
	}
	h.mend()
	g, err := w.run(h)
	if err != nil {
		w.violate("the domain can't be run on %s: %v", h.name, err)
	}
	return g
}

func newCrashWorld(t *testing.T, seed uint64) *crashWorld {
	w := &crashWorld{t: t, seed: seed, chance: &chance{r: rand.New(rand.NewPCG(seed, 0))}, counts: map[string]int{}}
	for i, name := range []string{"A", "B"} {
		w.hosts[i] = newHost(name, w.chance)
	}
	w.durable = w.chance.in(2)
	for s := range sectors { // the copy has something else
		w.hosts[0].m.cache[s], w.hosts[1].m.cache[s] = w.newValue(), w.newValue()
	}
	for _, h := range w.hosts {
		copy(h.m.stable, h.m.cache)
	}
	return w
}

func (w *crashWorld) other(h *host) *host {
	if h == w.hosts[0] {
		return w.hosts[1]
	}
	return w.hosts[0]
}

// finish brings both disks together: after all faults that must be possible.
func (w *crashWorld) finish(g *guest) {
	defer g.end()
	to := w.other(g.host)
	for _, h := range w.hosts {
		h.mend()
	}
	for try := range 3 {
		p, err := g.protect(to, fault{})
		if err == nil {
			if err = p.link.AwaitSync(); err == nil {
				on := g.still()
				if err = p.epoch(g, 1, true); err == nil {
					err = w.compare(g, to)
				}
				on()
			}
			p.leave()
		}
		if err == nil {
			w.check(to, "at the end")
			return
		}
		if try == 2 {
			w.violate("the domain on %s can't be protected any more: %v", g.host.name, err)
		}
		w.invalidate(to)
	}
}

func (w *crashWorld) schedule() {
	g := w.runs(w.hosts[0])
	for range 2 + w.chance.n(6) {
		time.Sleep(time.Duration(w.chance.n(20000)) * time.Microsecond)
		g = w.protected(g, w.other(g.host), w.fault())
	}
	w.finish(g)
}

// Two hosts, their disks and a model of what a domain may find on them: power cuts
// of either or both with lost, torn and rotten sectors, write-back that fails,
// storage that is full, connections and processes that end in every phase of a
// session, and operators who run or protect the domain from the wrong side. No
// write is lost that the domain flushed and whose epoch is committed, or with a
// journal on stable storage acknowledged; no copy is recorded as consistent that is
// not; the copy that a first copy leaves is the primary's disk; and no newer data
// is overwritten.
func TestCrashMatrix(t *testing.T) {
	first, n := *crashFirst, *crashSeeds
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	if *crashSeed != 0 {
		first, n = *crashSeed, 1
	}
	t.Logf("seeds from %d on", first)
	total := map[string]int{}
	for i := range n {
		w := newCrashWorld(t, first+uint64(i))
		synctest.Test(t, func(t *testing.T) {
			w.t = t
			w.schedule()
			if w.damaged || n == 1 {
				t.Log(strings.Join(w.says, "\n"))
			}
		})
		for what, n := range w.counts {
			total[what] += n
		}
		if w.damaged {
			break
		}
	}
	for _, what := range slices.Sorted(keys(total)) {
		t.Logf("%8d %s", total[what], what)
	}
}

func keys(m map[string]int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// A session is interrupted at any time, again and again, and each time the next one
// brings the copy up to date by what is known to have changed. Both disks are the
// same each time.
func TestCrashResyncs(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	w := newCrashWorld(t, seed)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		g := w.runs(w.hosts[0])
		for w.counts["whole disks compared"] < *crashRounds && !w.damaged {
			kinds := []faultKind{none, breaks, serverKilled}
			f := fault{kinds[w.chance.n(len(kinds))], w.chance.upTo(1e6)}
			g = w.protected(g, w.hosts[1], f)
			w.says = nil
		}
		w.finish(g)
	})
	t.Logf("seed %d: %v", seed, w.counts)
}

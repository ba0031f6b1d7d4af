package simxen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"sync"
	"time"

	"xlft/xlft"
)

// PageSize is Xen's.
const PageSize = 4096

// A Domain is a deterministic program whose whole state lives in its pages: page 0 holds its count and its checksum,
// the other pages hold checksums of earlier steps.
type Domain struct {
	Name string
	host *Host
	vif  *vif

	mu        sync.Mutex
	pages     [][]byte // nil: never written, all zero
	dirty     map[int]bool
	fresh     map[int]bool // came since the last checkpoint: what is written to them is not in dirty
	lacks     map[int]bool // pages that the domain gave back
	limit     int          // pages that it may have
	written   int          // page that Write wrote last
	suspended bool
	saved     bool // another program has suspended it
	paused    int  // how often, as Xen counts
	gone      bool
	ended     string // why the program ended by itself; "" until then
	deaf      bool   // ignores suspend requests
	silent    bool   // sends nothing
	life      *life
	stop      chan struct{}

	// The disk, and how far the write in flight has got. This is not a part of the domain's state: after a takeover the
	// domain has only what its memory holds.
	mirror   replicatedDisk
	diskLost func(error) // tells the protector that the disk server died
	issued   bool
	answered bool
}

// tick is the time between two steps of a domain.
const tick = 10 * time.Millisecond

// Boot starts a domain with n pages on the host.
func (h *Host) Boot(name string, n int) *Domain {
	h.platter.renew()
	d := h.domain(name, n)
	d.life = h.outside.birth(d, nil, 0, 0)
	d.run()
	return d
}

func (h *Host) domain(name string, n int) *Domain {
	d := &Domain{Name: name, host: h, vif: newVif(h.outside), dirty: map[int]bool{}, fresh: map[int]bool{}, lacks: map[int]bool{}, limit: n + slack, stop: make(chan struct{})}
	d.mirror = h.newMirror()
	d.pages = make([][]byte, n)
	if n > 0 {
		d.page(0)
	}
	h.mu.Lock()
	h.domains[name] = d
	h.mu.Unlock()
	return d
}

// run runs the program until the domain is destroyed.
func (d *Domain) run() {
	d.host.wg.Go(func() {
		t := time.NewTicker(tick)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				d.step()
			case <-d.stop:
				return
			}
		}
	})
}

// page returns a page for writing.
func (d *Domain) page(i int) []byte {
	if d.pages[i] == nil {
		d.pages[i] = make([]byte, PageSize)
	}
	return d.pages[i]
}

// Touch writes to the first n pages from page 1 on.
func (d *Domain) Touch(n int) {
	in := d.host.outside.Rand()
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := 1; i <= n; i++ {
		binary.LittleEndian.PutUint64(d.page(i)[8*(i%500):], in+uint64(i))
		d.wrote(i)
	}
}

// Write writes to n pages from page 1 on, one after the other, going on where the last Write ended.
func (d *Domain) Write(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone || d.stopped() {
		return
	}
	for range n {
		d.written = d.written%(len(d.pages)-1) + 1
		d.page(d.written)[16]++
		d.wrote(d.written)
	}
}

func fold(sum, in, count uint64) uint64 {
	x := (sum ^ in ^ count<<32) * 0x9e3779b97f4a7c15
	return x ^ x>>29
}

func (d *Domain) step() {
	in := d.host.outside.Rand()
	d.mu.Lock()
	if d.gone || d.stopped() || d.ended != "" {
		d.mu.Unlock()
		return
	}
	count, sum := d.state()
	count++
	sum = fold(sum, in, count)
	binary.LittleEndian.PutUint64(d.page(0), count)
	binary.LittleEndian.PutUint64(d.page(0)[8:], sum)
	at := 1 + int(in%uint64(len(d.pages)-1))
	d.takePages()
	if !d.lacks[at] {
		binary.LittleEndian.PutUint64(d.page(at)[8*(count%(PageSize/8)):], sum)
		d.wrote(at)
	}
	d.dirty[0] = true
	d.takeAnswer()
	if !d.issued && !d.host.outside.NoDisks {
		if binary.LittleEndian.Uint64(d.page(0)[memBusy:]) == 0 {
			d.beginWrite(in >> 8)
		}
		d.issue()
	}
	l, speak := d.life, in>>32%2 == 0 && !d.silent
	d.mu.Unlock()
	d.host.outside.lived(l, count, sum)
	if speak {
		d.vif.send(l, Packet{count, sum})
	}
}

func (d *Domain) state() (count, sum uint64) { return state(d.pages) }

func state(pages [][]byte) (count, sum uint64) {
	if len(pages) == 0 || pages[0] == nil {
		return 0, 0
	}
	return binary.LittleEndian.Uint64(pages[0]), binary.LittleEndian.Uint64(pages[0][8:])
}

// speaks reports whether the domain runs and its packets leave at once.
func (d *Domain) speaks() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.gone && !d.stopped() && d.ended == "" && d.vif.speaks.Load()
}

// Runs reports whether the domain takes steps.
func (d *Domain) Runs() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.gone && !d.stopped() && d.ended == ""
}

// Undelivered returns how many packets of this life were not delivered.
func (d *Domain) Undelivered() uint64 {
	d.host.outside.mu.Lock()
	defer d.host.outside.mu.Unlock()
	return d.life.sent - d.life.got
}

// End ends the program as if it had ended by itself.
func (d *Domain) End(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = why
}

// Freeze stops the program, so that it can be inspected.
func (d *Domain) Freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused++
}

// Thaw undoes one Freeze.
func (d *Domain) Thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused--
}

// Deafen makes the domain ignore suspend requests.
func (d *Domain) Deafen(deaf bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deaf = deaf
}

// Gone reports whether the domain was destroyed.
func (d *Domain) Gone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

func (d *Domain) destroy() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.gone {
		d.gone = true
		close(d.stop)
	}
}

func hash(pages [][]byte) uint64 {
	h := fnv.New64a()
	for i, p := range pages {
		if p == nil || bytes.Equal(p, zeroPage[:]) {
			continue
		}
		h.Write([]byte{byte(i), byte(i >> 8)})
		h.Write(p[:64]) // count, sum and the first words: enough to tell states apart
		h.Write(p[PageSize/2 : PageSize/2+64])
	}
	return h.Sum64()
}

// stopped is whether the domain's program stands still; its lock is held.
func (d *Domain) stopped() bool { return d.suspended || d.saved || d.paused > 0 }

// SuspendLate suspends the domain as it was asked to before.
func (d *Domain) SuspendLate() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.suspended = true
}

// SuspendByOther suspends the domain as another program does, such as xl save, once it is
// not suspended otherwise. ResumeByOther undoes it, and reports whether nobody else has.
func (d *Domain) SuspendByOther() {
	for {
		d.mu.Lock()
		d.saved = !d.suspended
		done := d.saved
		d.mu.Unlock()
		if done {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (d *Domain) ResumeByOther() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.saved
	d.saved = false
	return was
}

// guest is a process's handle on a domain.
type guest struct {
	p *Process
	d *Domain

	limit, held int // of HoldMemory
}

var zeroPage [PageSize]byte

// Guest returns a domain as an xlft.Guest of the process.
func (p *Process) Guest(d *Domain) xlft.Guest { return &guest{p: p, d: d} }

func (g *guest) Suspend(ctx context.Context) (asked time.Time, err error) {
	asked = time.Now()
	for {
		if g.p.Dead() {
			return asked, errDead
		}
		g.d.mu.Lock()
		switch {
		case g.d.gone || g.d.ended != "":
			g.d.mu.Unlock()
			return asked, xlft.ErrGuestEnded
		case g.d.saved:
			g.d.mu.Unlock()
			return asked, xlft.ErrSuspendedByOther
		case !g.d.deaf && g.d.paused == 0:
			g.d.suspended = true
			h := hash(g.d.pages)
			l := g.d.life
			g.d.mu.Unlock()
			g.d.host.outside.took(l, h)
			return asked, nil
		}
		g.d.mu.Unlock()
		select {
		case <-ctx.Done():
			return asked, xlft.ErrSuspendTimeout
		case <-time.After(time.Millisecond):
		}
	}
}

func (g *guest) change(f func(*Domain)) error {
	g.p.h.work()
	return g.with(f)
}

// with calls f with the domain, in no time.
func (g *guest) with(f func(*Domain)) error {
	if g.p.Dead() {
		return errDead
	}
	g.d.mu.Lock()
	defer g.d.mu.Unlock()
	f(g.d)
	return nil
}

func (g *guest) Resume() error {
	return g.change(func(d *Domain) { d.suspended, d.saved = false, false })
}
func (g *guest) Pause() error { return g.change(func(d *Domain) { d.paused++ }) }

func (g *guest) Unpause() error {
	var none error
	err := g.change(func(d *Domain) {
		if d.paused == 0 {
			none = xlft.ErrNotPaused
			return
		}
		d.paused--
	})
	return errors.Join(err, none)
}

func (g *guest) Destroy() error {
	g.p.h.work()
	if g.p.Dead() {
		return errDead
	}
	g.d.destroy()
	return nil
}

func (g *guest) DirtyPages() (uint64, error) {
	g.d.mu.Lock()
	defer g.d.mu.Unlock()
	return uint64(len(g.d.dirty)), nil
}

func (g *guest) State() (xlft.GuestState, string, error) {
	if g.p.Dead() {
		return 0, "", errDead
	}
	g.d.mu.Lock()
	defer g.d.mu.Unlock()
	switch {
	case g.d.gone:
		return xlft.GuestOver, "destroyed", nil
	case g.d.ended != "":
		return xlft.GuestOver, g.d.ended, nil
	case g.d.saved:
		return xlft.GuestSuspendedByOther, "", nil
	case g.d.suspended:
		return xlft.GuestSuspended, "", nil
	}
	return xlft.GuestRuns, "", nil
}

package backup

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"xlft/diskrepl"
	"xlft/xlft"
)

// guestRun is how many sectors belong to one of the domain's writers, and then so
// many to the next: no two write to one sector.
const (
	guestRun     = 16
	guestWriters = 3
)

// A guest is a domain that runs on a host, and its disk server.
type guest struct {
	w    *crashWorld
	host *host
	t    *timeline
	mem  []byte // the record of changes, which outlives the server

	gate  chan struct{} // one for each writer: held while it has a request
	flush chan struct{}
	stop  chan struct{}
	wg    sync.WaitGroup

	mu sync.Mutex
	m  *diskrepl.Mirror
	h  *hand
}

// run starts the domain on a host.
func (w *crashWorld) run(h *host) (*guest, error) {
	g := &guest{w: w, host: h, t: &timeline{}, mem: make([]byte, diskrepl.DirtySize(crashDisk)),
		gate: make(chan struct{}, guestWriters), flush: make(chan struct{}, 1), stop: make(chan struct{})}
	g.serve()
	if err := g.newData(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	g.t.base, g.t.bad = h.m.image()
	h.mu.Unlock()
	// A file system's own recovery writes what can't be read.
	for at, bad := range g.t.bad {
		if bad {
			g.ask(g.t.begin(at, 1, 0, false), func(m *diskrepl.Mirror) error { return m.Zero(int64(at)*sectorSize, sectorSize, false, false) })
		}
	}
	for i := range guestWriters {
		g.wg.Go(func() { g.write(i) })
	}
	return g, nil
}

// serve starts a disk server, which finds what the one before it recorded.
func (g *guest) serve() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.h = g.host.hand()
	g.m = diskrepl.NewMirror(crashDevice{g.h})
	g.m.Track(g.mem)
}

func (g *guest) server() *diskrepl.Mirror {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.m
}

// kill ends the disk server as it is, and starts another.
func (g *guest) kill() {
	g.mu.Lock()
	m := g.m
	g.h.kill()
	g.mu.Unlock()
	m.Stop()
	g.serve()
}

// end ends the domain.
func (g *guest) end() {
	close(g.stop)
	g.server().Stop()
	g.wg.Wait()
}

// still stops the domain between two requests. The function lets it go on.
func (g *guest) still() func() {
	for range guestWriters {
		g.gate <- struct{}{}
	}
	return func() {
		for range guestWriters {
			<-g.gate
		}
	}
}

// newData and giveData are the disk server's, diskserver/data.go.
func (g *guest) newData() error {
	return g.change(func(r *diskRecordOf) {
		if r.State == "" {
			r.State = xlft.UpToDate
		}
		if r.Data.Given {
			r.Data = r.Data.Next()
		}
		r.line = append(slices.Clone(r.line), g.w.newLine())
	})
}

func (g *guest) giveData() (xlft.DataGen, error) {
	err := g.change(func(r *diskRecordOf) {
		if !r.Data.Given && r.Data.ID == "" {
			r.Data = r.Data.Next()
		}
		r.Data.Given = true
	})
	return g.host.recordNow().Data, err
}

func (g *guest) change(f func(*diskRecordOf)) error {
	g.mu.Lock()
	h := g.h
	g.mu.Unlock()
	return h.do(nil, func() error { f(&h.record); return nil })
}

func (g *guest) write(writer int) {
	c := g.w.chance
	for {
		select {
		case <-g.stop:
			return
		case <-time.After(time.Duration(c.n(3000)) * time.Microsecond):
		}
		select {
		case <-g.stop:
			return
		case g.gate <- struct{}{}:
		}
		g.request(writer)
		<-g.gate
		if g.host.isDown() {
			<-g.stop
			return
		}
	}
}

// request makes one request.
func (g *guest) request(writer int) {
	c := g.w.chance
	runs := sectors / guestRun
	at := (c.n(runs/guestWriters)*guestWriters + writer) * guestRun
	if hot := c.in(2); hot {
		at = writer * guestRun
	}
	at += c.n(guestRun)
	n := 1 + c.n(guestRun-at%guestRun)
	fua := c.in(6)
	var op *guestOp
	var do func(m *diskrepl.Mirror) error
	off, size := int64(at)*sectorSize, int64(n)*sectorSize
	switch c.n(8) {
	case 0:
		g.flush <- struct{}{}
		defer func() { <-g.flush }()
		op, do = g.t.beginFlush(), func(m *diskrepl.Mirror) error { return m.Flush() }
	case 1:
		op, do = g.t.begin(at, n, 0, fua), func(m *diskrepl.Mirror) error { return m.Zero(off, size, false, fua) }
	case 2: // not Trim, after which storage may return anything
		op, do = g.t.begin(at, n, 0, fua), func(m *diskrepl.Mirror) error { return m.Zero(off, size, true, fua) }
	default:
		v := g.w.newValue()
		b := make([]byte, size)
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], v)
		}
		op, do = g.t.begin(at, n, v, fua), func(m *diskrepl.Mirror) error { return m.WriteAt(b, off, fua) }
	}
	g.ask(op, do)
}

// ask makes a request, again if the disk server was killed meanwhile.
func (g *guest) ask(op *guestOp, do func(*diskrepl.Mirror) error) {
	for {
		err := do(g.server())
		if err == nil {
			g.t.end(op, nil)
			return
		}
		select {
		case <-g.stop:
			return
		case <-time.After(time.Millisecond):
		}
		if !errors.Is(err, errNoPower) || g.host.isDown() {
			return // it is never answered
		}
	}
}

// afterPowerCut checks the domain's own disk after its host lost power.
func (g *guest) afterPowerCut() {
	g.host.mu.Lock()
	values, unread := g.host.m.image()
	g.host.mu.Unlock()
	if err := g.t.afterCrash(values, unread, 0, g.t.now(), math.MaxInt); err != nil {
		g.w.violate("the domain's own disk on %s after a power cut: %v", g.host.name, err)
	}
}

package backup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// A crashSession is what the model knows of a session.
type crashSession struct {
	w            *crashWorld
	id           string
	t            *timeline
	line         line
	durable      bool
	memory, file int64
	rottenSpill  bool

	mu    sync.Mutex
	seals map[uint64]cut
	at    reach
}

// A reach is how far a session came.
type reach struct{ acked, committed uint64 }

func (s *crashSession) reached() reach {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *crashSession) set(f func(*reach)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.at)
}

func (s *crashSession) seal(epoch uint64) cut {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seals[epoch]
}

// judge returns why a promoted copy must not be: it is of no epoch, or lacks
// what was acknowledged. epoch is what is known of it; 0 if nothing is.
func (s *crashSession) judge(values []uint64, unread []bool, epoch uint64, was reach, rotten bool) error {
	if was.committed == 0 {
		// The first commit has made it consistent, and nobody has heard of that yet.
		was.committed = 1
	}
	if epoch == 0 && !s.durable {
		return s.t.afterCrash(values, unread, s.seal(1).from, s.seal(was.committed).from, s.seal(max(was.acked, 1)).to)
	}
	if epoch == 0 && rotten {
		// The file of the only epoch that was not begun to be committed is damaged, as
		// one that did not come whole: the disk is at the epoch before.
		for e := max(was.committed, was.acked-min(was.acked, 1)); e <= was.acked+1; e++ {
			if s.seal(e) != (cut{}) && s.t.exact(values, unread, s.seal(e)) == nil {
				return nil
			}
		}
	}
	epoch = max(epoch, 1)
	if epoch < was.acked && !rotten {
		return fmt.Errorf("epoch %d was acknowledged", was.acked)
	}
	if s.seal(epoch) == (cut{}) {
		return errors.New("no such epoch was sealed")
	}
	return s.t.exact(values, unread, s.seal(epoch))
}

// A flawedConn breaks, or changes a bit, after so many bytes were written.
type flawedConn struct {
	net.Conn
	left  int
	flips bool
}

func (c *flawedConn) Write(p []byte) (int, error) {
	if c.left > 0 && c.left <= len(p) {
		if !c.flips {
			c.Conn.Write(p[:c.left-1])
			c.Close()
			return 0, errors.New("crash matrix: the connection breaks")
		}
		p = slices.Clone(p)
		p[c.left-1] ^= 4
	}
	c.left -= len(p)
	return c.Conn.Write(p)
}

// A pairing is a session under way.
type pairing struct {
	*crashSession
	to     *host
	hand   *hand    // of the receiver
	conn   net.Conn // its end
	s      *session
	link   *diskrepl.Link
	joined chan error
	work   sync.WaitGroup // commits
}

// protect begins a session of the domain's disk. It returns nil if the backup
// refused.
func (g *guest) protect(to *host, f fault) (*pairing, error) {
	w := g.w
	p := &pairing{to: to, hand: to.hand(), joined: make(chan error, 1)}
	p.crashSession = &crashSession{w: w, id: fmt.Sprint("session ", w.newLine()), t: g.t, line: slices.Clone(g.host.recordNow().line), seals: map[uint64]cut{},
		durable: w.durable, memory: 16 << 10 << w.chance.n(6), rottenSpill: f.kind == rottenSpill}
	if w.chance.in(2) || p.rottenSpill {
		p.file = 64 << 10
	}
	r := &Receiver{Disks: crashHost{p.hand, p.crashSession}, Log: zap.NewNop()}
	p.s = newSession(r, wire.Offer{Domain: "web1", Disks: []wire.Disk{{VDev: "xvda", Size: crashDisk}}}, g.host.name, xlft.Ownership{})
	p.s.id = p.id
	if err := p.s.openDisks(); err != nil {
		return nil, err
	}
	before := to.recordNow()
	a, b := net.Pipe()
	g.host.whenCut(func() { go a.Close() })
	to.whenCut(func() { go b.Close() })
	p.conn = b
	go func() { p.joined <- p.s.joinDisk(wire.NewConn(b)) }()
	fail := func(err error) (*pairing, error) {
		a.Close()
		<-p.joined
		p.s.closeDisks()
		return nil, err
	}
	data, err := g.giveData()
	if err != nil {
		return fail(err)
	}
	c := wire.NewConn(a)
	if err := c.WriteJSON(wire.TypeDisk, 0, wire.DiskOpen{Disk: p.s.offer.Disks[0], Data: data.ID, Past: data.Past}); err != nil {
		return fail(err)
	}
	var ready wire.DiskReady
	harm := before.State != xlft.Inconsistent && !p.line.has(before.line)
	if err := c.Expect(wire.TypeDiskReady, &ready); err != nil {
		if re := new(wire.Refusal); errors.As(err, &re) {
			if harm {
				w.count("wrong directions refused", 1)
			} else {
				w.count("refused without need", 1)
			}
		}
		return fail(err)
	}
	if harm {
		w.violate("%s (%v) overwrites the newer data of %s (%v, %+v)", g.host.name, p.line, to.name, before.line, before.DiskRecord)
	}
	flawed := &flawedConn{Conn: a}
	if f.kind == breaks || f.kind == flips {
		flawed.left, flawed.flips = f.after, f.kind == flips
	}
	p.link, err = g.server().Attach(flawed, diskrepl.Options{Session: p.id, SyncPoint: diskrepl.SyncPoint{Session: ready.MarkSession, Epoch: ready.MarkEpoch}, Limit: ready.Journal, Verify: true, Lost: func(error) {}})
	if err != nil {
		return fail(err)
	}
	return p, nil
}

// epoch ends an epoch, and has it acknowledged and committed. If it is told to
// wait it returns when that is done, and looks at the copy.
func (p *pairing) epoch(g *guest, e uint64, wait bool) error {
	at := cut{from: p.t.now()}
	err := p.link.Seal(e)
	at.to = p.t.now()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.seals[e] = at
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := p.s.awaitDisks(ctx, e); err != nil {
		return err
	}
	p.set(func(r *reach) { r.acked = e })
	p.s.mu.Lock()
	p.s.acked = e
	p.s.mu.Unlock()
	p.link.Release(e)
	done := make(chan error, 1)
	p.work.Go(func() {
		err := p.s.commitDisks(e)
		if err == nil {
			p.set(func(r *reach) { r.committed = e })
		}
		done <- err
	})
	p.w.count("epochs", 1)
	if !wait {
		return nil
	}
	if err := <-done; err != nil {
		return err
	}
	return p.look(e)
}

// look checks the copy after a commit, while the domain goes on.
func (p *pairing) look(e uint64) error {
	p.to.mu.Lock()
	values, unread := p.to.m.image()
	down := p.to.down || p.to.boots != p.hand.boots
	p.to.mu.Unlock()
	if down {
		return errNoPower
	}
	if err := p.t.exact(values, unread, p.seal(e)); err != nil {
		p.w.violate("the copy on %s after the commit of epoch %d of %s: %v", p.to.name, e, p.id, err)
	}
	return nil
}

// compare has the copies compared while the session goes on, if it is to find them
// equal: it is not where the storage loses what it was given.
func (p *pairing) compare(f fault) {
	if f.kind == weakens || !p.w.chance.in(4) {
		return
	}
	p.work.Go(func() {
		err := p.link.Verify(context.Background(), diskrepl.Comparison{Repair: p.w.chance.in(3)}, func(_ diskrepl.Compared, diff []diskrepl.Difference) error {
			for _, d := range diff {
				if d.Unreadable == "" { // else the host lost its power, and can still say so here
					p.w.violate("%s: equal copies seem to differ: %+v", p.id, d)
				}
			}
			return nil
		})
		if err == nil {
			p.w.count("comparisons", 1)
		}
	})
}

// leave ends the session in order, as far as the hosts are there.
func (p *pairing) leave() {
	p.s.closeDisks()
	p.link.Detach()
	<-p.joined
	p.work.Wait()
}

// takeOver makes the copy the domain's disk.
func (p *pairing) takeOver() bool {
	acked := p.reached().acked
	err := p.s.finishDisks(acked)
	if err != nil {
		p.s.takeBackDisks()
		p.leave()
		return false
	}
	p.leave()
	p.to.mu.Lock()
	values, unread := p.to.m.image()
	after, unreadAfter := p.to.m.afterPowerCut(p.to.chance).image()
	down := p.to.down || p.to.record.State != xlft.UpToDate
	p.to.mu.Unlock()
	if down {
		return false
	}
	for what, im := range map[string]struct {
		values []uint64
		unread []bool
	}{"": {values, unread}, " and a power cut": {after, unreadAfter}} {
		if err := p.t.exact(im.values, im.unread, p.seal(acked)); err != nil {
			p.w.violate("after the takeover at epoch %d of %s%s: %v", acked, p.id, what, err)
		}
	}
	p.w.count("takeovers", 1)
	return true
}

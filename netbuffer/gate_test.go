package netbuffer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"xlft/netbuffer"
	"xlft/netbuffer/netbuffertest"
)

// wire is the world behind a gate: it knows which epochs are acknowledged and
// notes every breach of the rules.
type wire struct {
	released uint64 // newest epoch whose output may be seen
	free     bool   // nothing needs to wait
	next     map[byte]uint32
	breach   error
}

// A packet is: vif, epoch, number on its vif.
func packet(vif byte, epoch uint64, n uint32, size int) []byte {
	p := make([]byte, 13+size)
	p[0] = vif
	binary.BigEndian.PutUint64(p[1:], epoch)
	binary.BigEndian.PutUint32(p[9:], n)
	return p
}

func (w *wire) receive(p []byte) {
	vif, epoch, n := p[0], binary.BigEndian.Uint64(p[1:]), binary.BigEndian.Uint32(p[9:])
	if !w.free && epoch > w.released && w.breach == nil {
		w.breach = fmt.Errorf("packet %d of vif %d left in epoch %d, only %d is released", n, vif, epoch, w.released)
	}
	if n != w.next[vif] && w.breach == nil {
		w.breach = fmt.Errorf("vif %d: got packet %d, want %d", vif, n, w.next[vif])
	}
	w.next[vif] = n + 1
}

// a sealer is what the property test drives: a Gate, or one that is broken.
type sealer interface {
	Seal(uint64) error
	Release(uint64) error
	ReleaseAll() error
}

// broken is a gate that lacks one of the rules.
type broken struct {
	paths []*netbuffertest.Path
	now   int

	twice    bool // seals again before a release
	hurries  bool // opens the next epoch while the one before is leaving
	anyOrder bool // opens the newest epoch first
	sealed   bool
}

func (b *broken) Seal(uint64) error {
	if b.sealed && !b.twice {
		return netbuffer.ErrHeld
	}
	for _, p := range b.paths {
		for empty := b.hurries || b.twice; !empty; {
			empty, _ = p.Empty(1 - b.now)
		}
		_ = p.Change(1-b.now, netbuffer.Hold)
		_ = p.Steer(1 - b.now)
	}
	b.now, b.sealed = 1-b.now, true
	return nil
}

func (b *broken) Release(uint64) error {
	b.sealed = false
	for _, p := range b.paths {
		_ = p.Change(1-b.now, netbuffer.Pass)
	}
	return nil
}

func (b *broken) ReleaseAll() error {
	b.sealed = false
	for _, p := range b.paths {
		_ = p.Change(1-b.now, netbuffer.Pass)
		for empty := b.anyOrder; !empty; {
			empty, _ = p.Empty(1 - b.now)
		}
		_ = p.Change(b.now, netbuffer.Pass)
	}
	return nil
}

// play runs random traffic, seals, acknowledgements and ends of protection, and
// returns the first breach of: nothing leaves before its epoch is released,
// nothing is lost, nothing is reordered.
func play(seed uint64, wrap func([]*netbuffertest.Path) sealer) error {
	const vifs = 2
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &wire{next: map[byte]uint32{}, free: true}
	var paths []*netbuffertest.Path
	for range vifs {
		p := netbuffertest.NewPath(w.receive)
		p.Slow(true)
		paths = append(paths, p)
	}
	gate := wrap(paths)

	epoch := uint64(1)       // that the domain runs in
	var unacked []uint64     // sealed and not released, oldest first
	var sent [vifs]uint32    // packets per vif
	send := func(vif byte) { // the domain sends, or its backend hands on
		paths[vif].Send(packet(vif, epoch, sent[vif], rng.IntN(50)))
		sent[vif]++
	}
	for range 300 {
		switch rng.IntN(12) {
		case 0, 1: // end an epoch
			err := gate.Seal(epoch)
			if errors.Is(err, netbuffer.ErrHeld) {
				break // a slow backup: the epoch goes on
			}
			if err != nil {
				return err
			}
			if w.free {
				w.free, w.released = false, epoch
			}
			if rng.IntN(3) == 0 { // the backend still had a packet
				send(byte(rng.IntN(vifs)))
			}
			unacked = append(unacked, epoch)
			epoch++
		case 2, 3: // the backup acknowledges
			if len(unacked) == 0 {
				break
			}
			w.released = max(w.released, unacked[0])
			if err := gate.Release(unacked[0]); err != nil {
				return err
			}
			unacked = unacked[1:]
		case 4:
			if rng.IntN(20) > 0 {
				break
			}
			w.free = true
			if err := gate.ReleaseAll(); err != nil {
				return err
			}
			unacked = nil
		case 5, 6: // time passes
			for range rng.IntN(6) {
				paths[rng.IntN(vifs)].Step(rng.IntN(2))
			}
		default:
			for range rng.IntN(4) {
				send(byte(rng.IntN(vifs)))
			}
		}
		if w.breach != nil {
			return w.breach
		}
	}
	w.free = true
	if err := gate.ReleaseAll(); err != nil {
		return err
	}
	for _, p := range paths {
		p.Slow(false)
		for p.Step(0) || p.Step(1) {
		}
	}
	for vif, n := range sent {
		if w.next[byte(vif)] != n && w.breach == nil {
			return fmt.Errorf("vif %d sent %d packets, %d came out", vif, n, w.next[byte(vif)])
		}
	}
	return w.breach
}

func newGate(paths []*netbuffertest.Path) sealer {
	var gated []netbuffer.Vif
	for i, p := range paths {
		gated = append(gated, netbuffer.Vif{Name: fmt.Sprintf("vif1.%d", i), Path: p})
	}
	return netbuffer.New(netbuffer.Options{}, gated...)
}

func TestNothingLeavesBeforeItsEpoch(t *testing.T) {
	for seed := range uint64(200) {
		if err := play(seed, newGate); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestBrokenGatesAreCaught shows that the check above would notice.
func TestBrokenGatesAreCaught(t *testing.T) {
	for name, tt := range map[string]struct {
		gate broken
		want string
	}{
		"SealsTwice":            {broken{twice: true, anyOrder: true}, "is released"},
		"DoesNotWaitForEmpty":   {broken{hurries: true}, "want"},
		"ReleasesAllOutOfOrder": {broken{anyOrder: true}, "want"},
	} {
		t.Run(name, func(t *testing.T) {
			caught := 0
			for seed := range uint64(200) {
				err := play(seed, func(p []*netbuffertest.Path) sealer {
					g := tt.gate
					g.paths = p
					return &g
				})
				if err != nil && strings.Contains(err.Error(), tt.want) {
					caught++
				}
			}
			t.Logf("caught in %d of 200 runs", caught)
			if caught == 0 {
				t.Error("the check never noticed")
			}
		})
	}
}

func TestGateRefusesTheWrongOrder(t *testing.T) {
	var out int
	q := netbuffertest.NewPath(func([]byte) { out++ })
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Vif{Name: "vif1.0", Path: q})
	want := func(what string, err, target error) {
		t.Helper()
		if !errors.Is(err, target) {
			t.Errorf("%s: got %v, want %v", what, err, target)
		}
	}
	want("release before a seal", g.Release(1), netbuffer.ErrEpoch)
	want("seal 1", g.Seal(1), nil)
	want("seal 2 before release 1", g.Seal(2), netbuffer.ErrHeld)
	want("release 2", g.Release(2), netbuffer.ErrEpoch)
	want("release 1", g.Release(1), nil)
	want("release 1 again", g.Release(1), netbuffer.ErrEpoch)
	want("seal 1 again", g.Seal(1), netbuffer.ErrEpoch)
	q.Send([]byte("x"))
	want("seal 3", g.Seal(3), nil)
	if s, err := g.Stats(); err != nil || s.Packets != 1 || s.Bytes != 1 || s.Sealed != 3 || !s.Holding {
		t.Errorf("stats: got %+v, %v", s, err)
	}
	want("release all", g.ReleaseAll(), nil)
	want("release after release all", g.Release(3), netbuffer.ErrEpoch)
	if out != 1 {
		t.Errorf("%d packets came out, want 1", out)
	}
	want("seal 1 after release all", g.Seal(1), nil) // protected anew
	want("seal 1 twice", g.Seal(1), netbuffer.ErrHeld)
	want("release 1 after release all", g.Release(1), nil)
	want("seal 1 thrice", g.Seal(1), netbuffer.ErrEpoch)
	want("close", g.Close(), nil)
	want("close again", g.Close(), nil)
	want("seal after close", g.Seal(4), netbuffer.ErrClosed)
}

// TestDrain: what the backends of a suspended domain pass on after the seal
// leaves as well, however long they take, and the gate still holds.
func TestDrain(t *testing.T) {
	w := &wire{next: map[byte]uint32{}, released: 1}
	late := []*trickle{{Path: netbuffertest.NewPath(w.receive), more: 5}, {Path: netbuffertest.NewPath(w.receive), vif: 1, more: 50}}
	var gated []netbuffer.Vif
	for i, p := range late {
		p.Path.Slow(true)
		gated = append(gated, netbuffer.Vif{Name: fmt.Sprintf("vif1.%d", i), Path: p})
	}
	g := netbuffer.New(netbuffer.Options{}, gated...)
	ctx := t.Context()
	if err := g.Drain(ctx); err != nil {
		t.Errorf("drain of a gate that does not hold: %v", err)
	}
	for _, p := range late {
		p.send()
	}
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
	for _, p := range late {
		p.send()
	}
	if err := g.Drain(ctx); !errors.Is(err, netbuffer.ErrHeld) {
		t.Errorf("drain before the release: %v", err)
	}
	if err := g.Release(1); err != nil {
		t.Fatal(err)
	}
	for _, p := range late {
		p.send()
		p.left = p.more
	}
	if err := g.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	for _, p := range late {
		if got := w.next[p.vif]; got != p.n || p.left > 0 {
			t.Errorf("vif %d: %d of %d packets came out, %d were never asked for", p.vif, got, p.n, p.left)
		}
		p.send()
	}
	if s, err := g.Stats(); err != nil || s.Packets != 2 || !s.Holding {
		t.Errorf("afterwards: %+v, %v", s, err)
	}
	if w.breach != nil {
		t.Error(w.breach)
	}
	if err := errors.Join(g.Seal(2), g.Release(2)); err != nil {
		t.Error(err)
	}

	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	late[1].left = 1 << 30
	if err := g.Drain(soon); !errors.Is(err, netbuffer.ErrBusy) {
		t.Errorf("drain of a vif that does not stop: %v", err)
	}
}

// trickle is a path on which more packets come while it is being looked at.
type trickle struct {
	*netbuffertest.Path
	vif  byte
	n    uint32
	more int
	left int
}

func (p *trickle) send() {
	p.Send(packet(p.vif, 1, p.n, 1))
	p.n++
}

func (p *trickle) Empty(queue int) (bool, error) {
	if p.left > 0 {
		p.left--
		p.send()
	}
	return p.Path.Empty(queue)
}

// TestSealAllOrNone: if one vif fails, nothing that is held gets out, and the
// gate does not go on as if it were sound.
func TestSealAllOrNone(t *testing.T) {
	boom := errors.New("boom")
	var out int
	a := netbuffertest.NewPath(func([]byte) { out++ })
	b := &stuck{Path: netbuffertest.NewPath(func([]byte) { out++ })}
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Vif{Name: "vif1.0", Path: a}, netbuffer.Vif{Name: "vif1.1", Path: b})
	if err := errors.Join(g.Seal(1), g.Release(1)); err != nil {
		t.Fatal(err)
	}
	a.Send([]byte("a"))
	b.Send([]byte("b"))
	b.err = boom
	if err := g.Seal(2); !errors.Is(err, boom) {
		t.Fatalf("got %v, want boom", err)
	}
	b.err = nil
	if err := g.Seal(3); !errors.Is(err, netbuffer.ErrBroken) || !errors.Is(err, boom) {
		t.Errorf("seal: got %v, want ErrBroken after boom", err)
	}
	if err := g.Release(2); !errors.Is(err, netbuffer.ErrBroken) {
		t.Errorf("release: got %v, want ErrBroken", err)
	}
	if out != 0 {
		t.Errorf("%d packets got out", out)
	}
	if err := g.ReleaseAll(); err != nil || out != 2 {
		t.Errorf("release all: %v, %d packets out, want 2", err, out)
	}
	if err := g.Seal(3); err != nil {
		t.Errorf("seal after release all: %v", err)
	}
}

// stuck is a path whose switch may fail.
type stuck struct {
	*netbuffertest.Path
	err error
}

func (s *stuck) Steer(queue int) error {
	if s.err != nil {
		return s.err
	}
	return s.Path.Steer(queue)
}

// TestSealWaitsUntilTheReleasedHaveLeft: a queue is not used again before it
// is empty, and if it does not run empty nothing is sealed.
func TestSealWaitsUntilTheReleasedHaveLeft(t *testing.T) {
	var out int
	p := &full{Path: netbuffertest.NewPath(func([]byte) { out++ })}
	g := netbuffer.New(netbuffer.Options{Timeout: 10 * time.Millisecond}, netbuffer.Vif{Name: "vif1.0", Path: p})
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
	p.full = true
	if err := g.Release(1); err != nil {
		t.Fatal(err)
	}
	p.Send([]byte("2"))
	if err := g.Seal(2); !errors.Is(err, netbuffer.ErrBusy) {
		t.Fatalf("got %v, want ErrBusy", err)
	}
	p.Send([]byte("2"))
	p.full = false
	if err := g.Seal(2); err != nil {
		t.Fatal(err)
	}
	if out != 0 {
		t.Errorf("%d packets got out", out)
	}
	if err := g.Release(2); err != nil || out != 2 {
		t.Errorf("release: %v, %d packets out, want 2", err, out)
	}
}

// full is a path whose queues never count as empty.
type full struct {
	*netbuffertest.Path
	full bool
}

func (f *full) Empty(queue int) (bool, error) {
	empty, err := f.Path.Empty(queue)
	return empty && !f.full, err
}

// TestDropsAreTold: Held says that packets of a held epoch were dropped, until
// the gate is open; what was dropped before it held does not count.
func TestDropsAreTold(t *testing.T) {
	p := netbuffertest.NewPath(func([]byte) {})
	p.Limit = 2
	p.Slow(true)
	g := netbuffer.New(netbuffer.Options{}, vif(p))
	flood := func() {
		for range 3 {
			p.Send([]byte("x"))
		}
	}
	flood()
	if _, _, err := g.Held(); err != nil {
		t.Errorf("dropped by an open gate: %v", err)
	}
	must(t, g.Seal(1))
	if _, _, err := g.Held(); err != nil {
		t.Errorf("nothing dropped since the seal: %v", err)
	}
	flood()
	if held, _, err := g.Held(); !errors.Is(err, netbuffer.ErrDropped) || held == 0 {
		t.Errorf("got %v with %d held, want ErrDropped", err, held)
	}
	must(t, g.Release(1))
	if _, _, err := g.Held(); !errors.Is(err, netbuffer.ErrDropped) {
		t.Errorf("after the release: got %v, want ErrDropped", err)
	}
	must(t, g.ReleaseAll())
	if _, _, err := g.Held(); err != nil {
		t.Errorf("after release all: %v", err)
	}
	must(t, g.Seal(1))
	if _, _, err := g.Held(); err != nil {
		t.Errorf("in the next protection: %v", err)
	}
}

// TestHeldIsMemory: what counts is the memory that packets take, which is much
// more than small ones hold, of both queues; and at the limit nothing is dropped.
func TestHeldIsMemory(t *testing.T) {
	small, large := make([]byte, 60), make([]byte, 1514)
	for _, c := range []struct {
		packet      []byte
		least, most uint64 // for each packet
	}{{small, 1 << 10, 4 << 10}, {large, 1<<10 + 4096 + 1386, 8 << 10}} {
		t.Run(fmt.Sprint(len(c.packet)), func(t *testing.T) {
			const n = 1000
			p, other := netbuffertest.NewPath(func([]byte) {}), netbuffertest.NewPath(func([]byte) {})
			g := netbuffer.New(netbuffer.Options{Limit: n * c.least}, netbuffer.Vif{Name: "vif1.0", Path: other}, netbuffer.Vif{Name: "vif1.1", Path: p})
			must(t, g.Seal(1))
			other.Send(c.packet)
			for i := range n {
				if i == n/2 {
					must(t, g.Release(1), g.Seal(2)) // the packets so far are in the other queue now
				}
				p.Send(c.packet)
			}
			held, limit, err := g.Held()
			if err != nil || limit != n*c.least || held < n*c.least || held > n*c.most {
				t.Errorf("held %d of %d, %v; want %d to %d", held, limit, err, n*c.least, n*c.most)
			}
			if s, err := g.Stats(); err != nil || s.Fullest < 1 || s.Drops != 0 || s.Packets != n+1 || s.Vifs[1].Memory != held {
				t.Errorf("stats: %+v, %v", s, err)
			}
		})
	}
}

// TestBypassedPath: a gate on a path whose redirect is gone says so, and works
// again after a release of all, when the redirect is back.
func TestBypassedPath(t *testing.T) {
	var out []byte
	p := netbuffertest.NewPath(func(b []byte) { out = append(out, b...) })
	g := netbuffer.New(netbuffer.Options{}, vif(p))
	must(t, g.Seal(1), g.Release(1))
	p.Send([]byte("a"))
	p.Bypass(true)
	p.Send([]byte("b"))
	if string(out) != "b" || !p.Open() {
		t.Errorf("%q came out, open %v", out, p.Open())
	}
	if _, _, err := g.Held(); !errors.Is(err, netbuffer.ErrBypassed) {
		t.Errorf("held: %v", err)
	}
	if err := g.Seal(2); !errors.Is(err, netbuffer.ErrBypassed) {
		t.Errorf("seal: %v", err)
	}
	p.Bypass(false)
	must(t, g.ReleaseAll(), g.Seal(1))
	p.Send([]byte("c"))
	if string(out) != "ba" || p.Open() {
		t.Errorf("%q came out, open %v", out, p.Open())
	}
}

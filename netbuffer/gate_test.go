package netbuffer_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
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
	Abandon() error
}

// twoSeals breaks the rule that one epoch may be sealed.
type twoSeals struct{ queues []*netbuffertest.Queue }

func (s twoSeals) all(a netbuffer.Action) error {
	for _, q := range s.queues {
		if err := q.Change(a); err != nil {
			return err
		}
	}
	return nil
}
func (s twoSeals) Seal(uint64) error    { return s.all(netbuffer.Buffer) }
func (s twoSeals) Release(uint64) error { return s.all(netbuffer.ReleaseOne) }
func (s twoSeals) Abandon() error       { return s.all(netbuffer.ReleaseIndefinite) }

// play runs random traffic, seals, acknowledgements and abandonments, and
// returns the first breach of: nothing leaves before its epoch is released,
// nothing is lost, nothing is reordered.
func play(seed uint64, wrap func([]*netbuffertest.Queue) sealer) error {
	const vifs = 2
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &wire{next: map[byte]uint32{}, free: true}
	var queues []*netbuffertest.Queue
	for range vifs {
		queues = append(queues, netbuffertest.NewQueue(w.receive))
	}
	gate := wrap(queues)

	epoch := uint64(1)       // that the domain runs in
	var unacked []uint64     // sealed and not released, oldest first
	var sent [vifs]uint32    // packets per vif
	send := func(vif byte) { // the domain sends
		queues[vif].Send(packet(vif, epoch, sent[vif], rng.IntN(50)))
		sent[vif]++
	}
	for range 300 {
		switch rng.IntN(10) {
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
			if err := gate.Abandon(); err != nil {
				return err
			}
			unacked = nil
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
	if err := gate.Abandon(); err != nil {
		return err
	}
	for vif, n := range sent {
		if w.next[byte(vif)] != n {
			return fmt.Errorf("vif %d sent %d packets, %d came out", vif, n, w.next[byte(vif)])
		}
	}
	return w.breach
}

func newGate(queues []*netbuffertest.Queue) sealer {
	var lines []netbuffer.Line
	for i, q := range queues {
		lines = append(lines, netbuffer.Line{Name: fmt.Sprintf("vif1.%d", i), Queue: q})
	}
	return netbuffer.New(netbuffer.Options{}, lines...)
}

func TestNothingLeavesBeforeItsEpoch(t *testing.T) {
	for seed := range uint64(2000) {
		if err := play(seed, newGate); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestTwoSealsAreCaught shows that the check above would notice.
func TestTwoSealsAreCaught(t *testing.T) {
	caught := 0
	for seed := range uint64(200) {
		if err := play(seed, func(q []*netbuffertest.Queue) sealer { return twoSeals{q} }); err != nil {
			caught++
		}
	}
	if caught < 150 {
		t.Errorf("a gate that seals twice passed the check in %d of 200 runs", 200-caught)
	}
}

func TestGateRefusesTheWrongOrder(t *testing.T) {
	var out int
	q := netbuffertest.NewQueue(func([]byte) { out++ })
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Line{Name: "vif1.0", Queue: q})
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
	want("abandon", g.Abandon(), nil)
	want("release after abandon", g.Release(3), netbuffer.ErrEpoch)
	if out != 1 {
		t.Errorf("%d packets came out, want 1", out)
	}
	want("close", g.Close(), nil)
	want("close again", g.Close(), nil)
	want("seal after close", g.Seal(4), netbuffer.ErrClosed)
}

// TestSealAllOrNone: if one vif fails, nothing that is held gets out, and the
// gate does not go on as if it were sound.
func TestSealAllOrNone(t *testing.T) {
	boom := errors.New("boom")
	var out int
	a := netbuffertest.NewQueue(func([]byte) { out++ })
	b := netbuffertest.NewQueue(func([]byte) { out++ })
	fb := &failing{Queue: b}
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Line{Name: "vif1.0", Queue: a}, netbuffer.Line{Name: "vif1.1", Queue: fb})
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
	if err := g.Release(1); err != nil {
		t.Fatal(err)
	}
	a.Send([]byte("a"))
	b.Send([]byte("b"))
	fb.err = boom
	if err := g.Seal(2); !errors.Is(err, boom) {
		t.Fatalf("got %v, want boom", err)
	}
	fb.err = nil
	if err := g.Seal(3); !errors.Is(err, netbuffer.ErrBroken) {
		t.Errorf("seal: got %v, want ErrBroken", err)
	}
	if err := g.Release(2); !errors.Is(err, netbuffer.ErrBroken) {
		t.Errorf("release: got %v, want ErrBroken", err)
	}
	if out != 0 {
		t.Errorf("%d packets got out", out)
	}
	if err := g.Abandon(); err != nil || out != 2 {
		t.Errorf("abandon: %v, %d packets out, want 2", err, out)
	}
	if err := g.Seal(3); err != nil {
		t.Errorf("seal after abandon: %v", err)
	}
}

// failing is a queue whose Change fails while its state can be read.
type failing struct {
	netbuffer.Queue
	err error
}

func (f *failing) Change(a netbuffer.Action) error {
	if f.err != nil {
		return f.err
	}
	return f.Queue.Change(a)
}

// leaky lets a packet out that nobody released.
type leaky struct {
	netbuffer.Queue
	extra uint64
}

func (l *leaky) State() (netbuffer.QueueState, error) {
	st, err := l.Queue.State()
	st.Passed += l.extra
	return st, err
}

func TestSealNoticesALeak(t *testing.T) {
	l := &leaky{Queue: netbuffertest.NewQueue(func([]byte) {})}
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Line{Name: "vif1.0", Queue: l})
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
	if err := g.Release(1); err != nil {
		t.Fatal(err)
	}
	l.extra = 60
	if err := g.Seal(2); !errors.Is(err, netbuffer.ErrLeak) {
		t.Errorf("got %v, want ErrLeak", err)
	}
}

// late has a packet arrive at the very moment of a Buffer, after the kernel has
// counted.
type late struct {
	*netbuffertest.Queue
	during func()
}

func (l *late) Change(a netbuffer.Action) error {
	err := l.Queue.Change(a)
	if f := l.during; a == netbuffer.Buffer && f != nil {
		l.during = nil
		f()
	}
	return err
}

// TestSealWithLatePacket: what the backend still had when the domain was
// suspended may leave late, never early, and the queue recovers when idle.
func TestSealWithLatePacket(t *testing.T) {
	var out []string
	l := &late{Queue: netbuffertest.NewQueue(func(p []byte) { out = append(out, string(p)) })}
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Line{Name: "vif1.0", Queue: l})
	step := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	step("seal 1", g.Seal(1))
	step("release 1", g.Release(1))
	l.Send([]byte("a"))
	l.Send([]byte("b"))
	l.during = func() { l.Send([]byte("late")) }
	step("seal 2", g.Seal(2))
	l.Send([]byte("3")) // of epoch 3
	step("release 2", g.Release(2))
	if len(out) > 3 {
		t.Fatalf("epoch 3 left early: %q", out)
	}
	step("seal 3", g.Seal(3))
	step("release 3", g.Release(3))
	step("seal 4", g.Seal(4)) // idle: nothing came since
	if got := fmt.Sprint(out); got != "[a b late 3]" {
		t.Errorf("got %s", got)
	}
	step("release 4", g.Release(4))
	l.Send([]byte("5"))
	step("seal 5", g.Seal(5))
	if len(out) != 4 {
		t.Errorf("after recovery: %q", out)
	}
	step("release 5", g.Release(5))
	if len(out) != 5 {
		t.Errorf("after recovery: %q", out)
	}
}

// TestFirstSealWaitsForAnEmptyQueue: packets that wait in a queue that lets
// everything out are not counted by the plug.
func TestFirstSealWaitsForAnEmptyQueue(t *testing.T) {
	q := &stuffed{Queue: netbuffertest.NewQueue(func([]byte) {}), waiting: 3}
	g := netbuffer.New(netbuffer.Options{Timeout: 20 * time.Millisecond}, netbuffer.Line{Name: "vif1.0", Queue: q})
	if err := g.Seal(1); !errors.Is(err, netbuffer.ErrBusy) {
		t.Fatalf("got %v, want ErrBusy", err)
	}
	if q.buffered {
		t.Fatal("held while packets waited")
	}
	q.waiting = 0
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
}

type stuffed struct {
	*netbuffertest.Queue
	waiting  uint64
	buffered bool
}

func (s *stuffed) State() (netbuffer.QueueState, error) {
	st, err := s.Queue.State()
	st.Packets += s.waiting
	return st, err
}

func (s *stuffed) Change(a netbuffer.Action) error {
	s.buffered = s.buffered || a == netbuffer.Buffer
	return s.Queue.Change(a)
}

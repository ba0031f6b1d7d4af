package netbuffer_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"xlft/netbuffer"
	"xlft/netbuffer/netbuffertest"
)

// happened takes an event if there is one.
func happened(g *netbuffer.Gate) bool {
	select {
	case <-g.Events():
		return true
	default:
		return false
	}
}

// expect checks whether there is an event.
func expect(t *testing.T, g *netbuffer.Gate, when string, want bool) {
	t.Helper()
	if got := happened(g); got != want {
		t.Errorf("%s: event %v, want %v", when, got, want)
	}
}

func nowhere([]byte) {}

// TestEvents: one event for the first packet of an epoch, from any vif, and none
// while nothing is held.
func TestEvents(t *testing.T) {
	a, b := netbuffertest.NewPath(nowhere), netbuffertest.NewPath(nowhere)
	g := netbuffer.New(netbuffer.Options{}, vif(a), vif(b))
	a.Send([]byte("x"))
	expect(t, g, "before the first seal", false)
	for e := uint64(1); e < 5; e++ {
		must(t, g.Seal(e))
		expect(t, g, "after a seal", false)
		must(t, g.Release(e))
		expect(t, g, "after a release", false)
		a.Send([]byte("x"))
		expect(t, g, "the first packet", true)
		a.Send([]byte("x"))
		b.Send([]byte("x"))
		expect(t, g, "more packets", false)
		_, _, err := g.Held()
		must(t, err)
		expect(t, g, "a look at the queues after the event", false)
	}
	must(t, g.Seal(5))
	b.Send([]byte("x"))
	must(t, g.Release(5), g.Seal(6)) // nobody received the event
	expect(t, g, "after the seal of an epoch with packets", false)
	b.Send([]byte("x"))
	must(t, g.ReleaseAll())
	a.Send([]byte("x"))
	expect(t, g, "after the end of protection", false)
	must(t, g.Seal(1))
	a.Send([]byte("x"))
	expect(t, g, "protected again", true)
	must(t, g.Close())
}

// A gapPath has packets that arrive right before and right after the switch.
type gapPath struct {
	*netbuffertest.Path
	before, after bool
}

func (p *gapPath) Steer(queue int) error {
	if p.before {
		p.Send([]byte("before"))
	}
	err := p.Path.Steer(queue)
	if p.after {
		p.Send([]byte("after"))
	}
	return err
}

// TestEventAtTheSwitch: a packet that arrives while Seal is at work has an event
// if it got into the running epoch.
func TestEventAtTheSwitch(t *testing.T) {
	p := &gapPath{Path: netbuffertest.NewPath(nowhere)}
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Vif{Name: "vif1.0", Path: p})
	p.before, p.after = true, false
	must(t, g.Seal(1))
	expect(t, g, "packet before the switch", false)
	must(t, g.Release(1))
	p.before, p.after = false, true
	must(t, g.Seal(2))
	expect(t, g, "packet after the switch", true)
	must(t, g.Release(2))
	p.before, p.after = true, true
	must(t, g.Seal(3))
	expect(t, g, "packets before and after the switch", true)
	must(t, g.Release(3))
	must(t, g.Seal(4)) // nobody receives that event
	p.before, p.after = false, false
	must(t, g.Release(4), g.Seal(5))
	expect(t, g, "the event of an epoch before", false)
}

// TestEventWithoutWatcher: of a path that says nothing by itself, Release, Held
// and Stats give the event.
func TestEventWithoutWatcher(t *testing.T) {
	p := netbuffertest.NewPath(nowhere)
	mute := struct{ netbuffer.Path }{p}
	g := netbuffer.New(netbuffer.Options{}, netbuffer.Vif{Name: "vif1.0", Path: mute})
	if way, why := g.Watching(); way != netbuffer.Polling || why != nil {
		t.Errorf("watching: %q, %v", way, why)
	}
	must(t, g.Seal(1))
	p.Send([]byte("x"))
	expect(t, g, "before a look", false)
	must(t, g.Release(1))
	expect(t, g, "at the release", true)
	must(t, g.Seal(2), g.Release(2))
	expect(t, g, "at a release without packets", false)
	p.Send([]byte("x"))
	for _, want := range []bool{true, false} {
		_, _, err := g.Held()
		must(t, err)
		expect(t, g, "at a look", want)
	}
	p.Send([]byte("x"))
	must(t, g.Seal(3))
	_, err := g.Stats()
	must(t, err)
	expect(t, g, "at a look at the sealed epoch", false)
}

// TestEventAdopted: a gate that is found holding has no events until it holds
// for this process.
func TestEventAdopted(t *testing.T) {
	p := netbuffertest.NewPath(nowhere)
	left(t, p, 2)
	g := netbuffer.Adopt(netbuffer.Options{}, vif(p))
	p.Send([]byte("x"))
	_, err := g.Stats()
	must(t, err)
	expect(t, g, "adopted", false)
	must(t, g.ReleaseAll())
	expect(t, g, "released", false)
	must(t, g.Seal(1))
	p.Send([]byte("x"))
	expect(t, g, "holding", true)
	must(t, g.Discard())
	expect(t, g, "discarded", false)
}

// TestEventAfterDrain: a domain whose switch-over failed is watched on.
func TestEventAfterDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := netbuffertest.NewPath(nowhere)
		g := netbuffer.New(netbuffer.Options{Nap: time.Sleep}, vif(p))
		must(t, g.Seal(1))
		p.Send([]byte("late"))
		expect(t, g, "late packet", true)
		must(t, g.Release(1), g.Drain(t.Context()))
		p.Send([]byte("x"))
		expect(t, g, "after the drain", true)

		// One can wait for the event in a bubble, also beside a gate that naps.
		must(t, g.Seal(2), g.Release(2))
		go func() {
			time.Sleep(time.Second)
			p.Send([]byte("x"))
		}()
		start := time.Now()
		<-g.Events()
		if d := time.Since(start); d != time.Second {
			t.Errorf("the event came after %v", d)
		}
	})
}

// TestEventOfEveryEpoch: with concurrent senders, every epoch with packets has
// had its event when they are seen.
func TestEventOfEveryEpoch(t *testing.T) {
	const epochs, senders = 1000, 3
	p := netbuffertest.NewPath(nowhere)
	g := netbuffer.New(netbuffer.Options{Nap: func(time.Duration) {}}, vif(p))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.Send([]byte("x"))
					time.Sleep(time.Microsecond)
				}
			}
		})
	}
	missed, events := 0, 0
	for e := uint64(1); e <= epochs; e++ {
		must(t, g.Seal(e))
		time.Sleep(time.Microsecond)
		n, err := p.State(p.Current())
		must(t, err)
		if got := happened(g); n.Packets > 0 && !got {
			missed++
		} else if got {
			events++
		}
		must(t, g.Release(e))
	}
	close(stop)
	wg.Wait()
	if missed > 0 {
		t.Errorf("%d epochs with packets had no event", missed)
	}
	t.Logf("%d events in %d epochs", events, epochs)
}

package primary

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"xlft/xlft"
)

// A load is a domain whose checkpoints are taken as its trigger asks, each with a pause
// and a time until the ack.
type load struct {
	*trigger
	pause  atomic.Int64
	events chan struct{}

	begun      time.Time
	ran, stood time.Duration
	taken      []taken
}

// taken is a checkpoint: why, and how long the domain had run.
type taken struct {
	why Why
	ran time.Duration
	at  time.Duration // since the load began
}

// ms is n milliseconds.
func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// usual is the pacing of these tests unless they say otherwise.
var usual = xlft.Pacing{Mode: xlft.ModeEvent, EpochMin: ms(1), EpochMax: time.Second, WindowMax: ms(500), RunShare: 0.5}

// play has a domain do something for a while.
func play(t *testing.T, p xlft.Pacing, pause, ack, lasts time.Duration, domain func(ctx context.Context, l *load)) *load {
	l := &load{}
	l.pause.Store(int64(pause))
	synctest.Test(t, func(t *testing.T) {
		l.events = make(chan struct{}, 1)
		l.trigger = newTrigger(&pages{}, &pages{}, l.events, 0, p)
		l.begun = time.Now()
		l.beginOpen()
		ctx, cancel := context.WithTimeout(t.Context(), lasts)
		var ends sync.WaitGroup
		defer ends.Wait()
		if domain != nil {
			ends.Go(func() { domain(ctx, l) })
		}
		asked := make(chan Why)
		defer cancel()
		go l.run(ctx, func(w Why) {
			select {
			case asked <- w:
			case <-ctx.Done():
			}
		}, func(err error) { t.Error(err) })
		began := time.Now() // when the domain resumed
		for {
			select {
			case <-ctx.Done():
				return
			case why := <-asked:
				l.take()
				l.taken = append(l.taken, taken{why, time.Since(began), time.Since(l.begun)})
				l.ran += time.Since(began)
				pause := time.Duration(l.pause.Load())
				time.Sleep(pause)
				l.stood += pause
				l.sealing()
				select { // as the gate's seal does
				case <-l.events:
				default:
				}
				l.resume(pause)
				began = time.Now()
				l.captured()
				time.Sleep(ack)
				l.open()
			}
		}
	})
	return l
}

// speak is the domain sending something.
func (l *load) speak() {
	select {
	case l.events <- struct{}{}:
	default:
	}
}

// talk speaks again and again.
func talk(every time.Duration) func(context.Context, *load) {
	return func(ctx context.Context, l *load) {
		for ctx.Err() == nil {
			l.speak()
			time.Sleep(every)
		}
	}
}

// at speaks once.
func at(d time.Duration) func(context.Context, *load) {
	return func(_ context.Context, l *load) { time.Sleep(d); l.speak() }
}

// count counts the checkpoints for a reason.
func (l *load) count(why Why) (n int) {
	for _, c := range l.taken {
		if c.why == why {
			n++
		}
	}
	return n
}

// A domain that sends nothing takes no checkpoints but those of epoch_max.
func TestSilentDomain(t *testing.T) {
	l := play(t, usual, ms(5), ms(5), 10*time.Second, nil)
	if n := l.count(WhyInterval); n != 9 || n != len(l.taken) {
		t.Errorf("%+v", l.taken)
	}
}

// The first output of a silent domain starts a checkpoint at once, whatever the window.
func TestFirstEventAtOnce(t *testing.T) {
	l := play(t, usual, ms(20), ms(5), ms(900), at(ms(300)))
	if len(l.taken) != 1 || l.taken[0] != (taken{WhyEvent, ms(300), ms(300)}) {
		t.Errorf("%+v", l.taken)
	}
}

// Output that comes while a checkpoint is being taken or in flight, and at whatever
// time, is not forgotten: it ends the epoch that it belongs to.
func TestEventAtAnyTime(t *testing.T) {
	// Asked for at 100 ms, sealed at 150, acked at 200.
	for when := ms(60); when < ms(260); when += ms(10) {
		l := play(t, usual, ms(50), ms(50), ms(900), func(ctx context.Context, l *load) {
			time.Sleep(ms(100))
			l.speak()
			time.Sleep(when - ms(100) + time.Microsecond)
			l.speak()
		})
		want := 2
		if when < ms(150) {
			want = 1 // it is in the first checkpoint, which was sealed after it
		}
		if len(l.taken) != want || l.count(WhyEvent) != want {
			t.Errorf("a second packet at %v: %+v", when, l.taken)
		} else if want == 2 && l.taken[1].at > max(ms(200), when+time.Millisecond) {
			t.Errorf("a second packet at %v waits until %v", when, l.taken[1].at)
		}
	}
}

// Under load the domain keeps its share of the time, and no epoch is longer for it than
// event_window_max.
func TestShare(t *testing.T) {
	for _, c := range []struct {
		share      float64
		pause, ack time.Duration
		min, max   time.Duration
		want       time.Duration // that the domain runs in each epoch
	}{
		{0.5, ms(20), ms(5), ms(1), ms(500), ms(20)},
		{0.8, ms(20), ms(5), ms(1), ms(500), ms(80)},
		{0.5, ms(2), ms(1), ms(1), ms(500), ms(2)},
		{0.5, ms(2), ms(30), ms(1), ms(500), ms(30)},   // one in flight
		{0.5, ms(2), ms(1), ms(10), ms(500), ms(10)},   // epoch_min
		{0.8, ms(400), ms(5), ms(1), ms(500), ms(500)}, // event_window_max
		{0, ms(20), ms(3), ms(1), ms(500), ms(3)},
	} {
		p := usual
		p.RunShare, p.EpochMin, p.WindowMax = c.share, c.min, c.max
		l := play(t, p, c.pause, c.ack, 10*time.Second, talk(ms(1)/2))
		for _, x := range l.taken[5:] {
			if x.why != WhyEvent || x.ran < c.want || x.ran > c.want+ms(1) {
				t.Errorf("%+v: %+v", c, x)
				break
			}
		}
		if got := float64(l.ran) / float64(l.ran+l.stood); c.max > c.want && got < c.share-0.01 {
			t.Errorf("%+v: the domain ran %.2f of its time", c, got)
		}
	}
}

// Light load: each request comes after the reply to the one before. Replies wait for no
// window, once the domain has run as long as it stood.
func TestPingPong(t *testing.T) {
	l := play(t, usual, ms(4), ms(2), 10*time.Second, talk(ms(25)))
	late := 0
	for _, x := range l.taken {
		if x.why != WhyEvent {
			t.Fatalf("%+v", x)
		}
		if x.at%ms(25) != 0 {
			late++
		}
	}
	if late > 1 || len(l.taken) < 390 {
		t.Errorf("%d of %d checkpoints were late", late, len(l.taken))
	}
}

// One pause that was long does not make the window long.
func TestOnePauseIsNoRule(t *testing.T) {
	l := play(t, usual, ms(5), ms(1), 2*time.Second, func(ctx context.Context, l *load) {
		for ; ctx.Err() == nil; time.Sleep(ms(1)) {
			l.speak()
			if l.pause.Store(int64(ms(5))); time.Since(l.begun)/ms(15) == time.Second/ms(15) {
				l.pause.Store(int64(ms(300)))
			}
		}
	})
	long := 0
	for _, x := range l.taken[2:] {
		if x.ran > ms(10) {
			long++
		}
	}
	if long > 0 {
		t.Errorf("%d long epochs: %+v", long, l.taken)
	}
}

// Strict waits for nothing; an interval for nothing that the domain does.
func TestOtherModes(t *testing.T) {
	p := usual
	p.Mode, p.EpochMin, p.WindowMax = xlft.ModeStrict, ms(100), ms(100)
	l := play(t, p, ms(20), 0, time.Second, talk(ms(7)))
	if n := l.count(WhyEvent); n != len(l.taken) || n < 30 {
		t.Errorf("strict: %+v", l.taken)
	}
	p.Mode, p.EpochMax = xlft.ModeInterval, ms(200)
	if l = play(t, p, 0, ms(5), time.Second+ms(1), talk(ms(7))); len(l.taken) != 5 || l.count(WhyInterval) != 5 {
		t.Errorf("interval: %+v", l.taken)
	}
}

// What changes while an epoch is open counts for it.
func TestPaceChanges(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*xlft.Pacing)
		want   taken
	}{
		"epoch_max, which is over":     {func(p *xlft.Pacing) { p.EpochMax = ms(100) }, taken{WhyInterval, ms(400), ms(400)}},
		"epoch_max, which is not over": {func(p *xlft.Pacing) { p.EpochMax = ms(450) }, taken{WhyInterval, ms(450), ms(450)}},
		"the window":                   {func(p *xlft.Pacing) { p.EpochMin = 0 }, taken{WhyEvent, ms(400), ms(400)}},
		"the mode":                     {func(p *xlft.Pacing) { p.Mode = xlft.ModeStrict }, taken{WhyEvent, ms(400), ms(400)}},
		"the mode, to the slowest":     {func(p *xlft.Pacing) { p.Mode = xlft.ModeInterval }, taken{WhyInterval, time.Second, time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			p := usual
			p.EpochMin, p.WindowMax = ms(700), ms(700)
			l := play(t, p, 0, 0, ms(1001), func(_ context.Context, l *load) {
				l.speak()
				time.Sleep(ms(400))
				now, _ := l.paced()
				c.change(&now)
				l.pace(now)
			})
			if len(l.taken) == 0 || l.taken[0] != c.want {
				t.Errorf("%+v, want %+v first", l.taken, c.want)
			}
		})
	}
}

// The end of a capture wakes the trigger, which may have looked between the resume and that.
func TestFirstLookInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pages{dirty: 1000}
		g := newTrigger(p, p, nil, 100*bytesPerPage, xlft.Pacing{Mode: xlft.ModeEvent, EpochMax: time.Second})
		g.pages.ran = 10 * time.Millisecond
		g.wrote(1000) // 100,000 pages a second: the first look is due after 50 ms
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		fired := make(chan time.Time, 100)
		go g.run(ctx, func(Why) { fired <- time.Now() }, func(err error) { t.Error(err) })
		synctest.Wait()
		g.take()
		g.sealing()
		g.set(func() { g.pages.ran = 10 * time.Millisecond })
		begun := time.Now()
		g.resume(0)
		synctest.Wait()
		g.captured()
		select {
		case at := <-fired:
			if after := at.Sub(begun); after > 50*time.Millisecond+maxPoll {
				t.Errorf("first look in flight after %v, due after 50ms", after)
			}
		case <-ctx.Done():
			t.Error("no look")
		}
	})
}

//go:build lab

package netbuffer

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A load is several senders at full speed that can be stopped between frames,
// like a domain that is suspended.
type load struct {
	gate  sync.RWMutex // held for writing while the domain is suspended
	epoch atomic.Uint64
	stop  atomic.Bool
	wg    sync.WaitGroup
	all   []*guest
}

func startLoad(t *testing.T, senders, vifs int) *load {
	l := &load{}
	for i := range senders {
		u := newGuest(t, i%vifs, byte(i))
		l.all = append(l.all, u)
		l.wg.Go(func() {
			runtime.LockOSThread() // and let the thread end here
			var cpu unix.CPUSet
			cpu.Set(i % runtime.NumCPU())
			if err := unix.SchedSetaffinity(0, &cpu); err != nil {
				t.Error(err)
			}
			for !l.stop.Load() {
				l.gate.RLock()
				u.burst(l.epoch.Load(), 8)
				l.gate.RUnlock()
			}
		})
	}
	return l
}

func (l *load) quiesce() (func(), error) {
	l.gate.Lock()
	return l.gate.Unlock, nil
}

// end stops the senders and returns the frames that came out, once all have
// come or no more come: a busy host looks at frames long after they left.
func (l *load) end(w *world) (got []seen) {
	l.stop.Store(true)
	l.wg.Wait()
	sent := 0
	for _, u := range l.all {
		sent += int(u.n)
	}
	for last, since := 0, time.Now(); last < sent && time.Since(since) < 3*time.Second; time.Sleep(5 * time.Millisecond) {
		if n := w.count(); n > last {
			last, since = n, time.Now()
		}
	}
	return w.take()
}

// complete checks that all frames came out, each sender's in order.
func (l *load) complete(t *testing.T, got []seen) {
	t.Helper()
	next := map[byte]uint32{}
	for i, s := range got {
		if want := next[s.sender]; s.n != want {
			j := slices.IndexFunc(got, func(o seen) bool { return o.sender == s.sender && o.n == want })
			if j < 0 {
				t.Errorf("sender %d: got frame %d, want %d, which never came", s.sender, s.n, want)
			} else {
				t.Errorf("sender %d: got frame %d at %v, want %d, which came %d frames and %v later", s.sender, s.n, s.at, want, j-i, got[j].at.Sub(s.at))
			}
			return
		}
		next[s.sender]++
	}
	for _, u := range l.all {
		if next[u.sender] != u.n {
			t.Errorf("sender %d: %d of %d frames came out", u.sender, next[u.sender], u.n)
		}
	}
}

// TestLabOpenAndCloseUnderLoad: building and removing the gate loses and
// reorders no frames, even if it holds at Close.
func TestLabOpenAndCloseUnderLoad(t *testing.T) {
	w := newWorld(t, 1)
	l := startLoad(t, 3, 1)
	for round := range 12 {
		time.Sleep(10 * time.Millisecond)
		g := w.open(Options{Quiesce: l.quiesce})
		time.Sleep(10 * time.Millisecond)
		if round%3 > 0 {
			resume, _ := l.quiesce()
			must(t, "seal", g.Seal(1))
			resume()
			time.Sleep(20 * time.Millisecond)
		}
		if round%3 > 1 {
			resume, _ := l.quiesce()
			must(t, "release", g.Release(1))
			must(t, "seal", g.Seal(2))
			resume()
			time.Sleep(5 * time.Millisecond)
		}
		must(t, "close", g.Close())
	}
	got := l.end(w)
	l.complete(t, got)
	t.Logf("%d frames through 12 gates", len(got))
	nothingLeft(t)
}

// TestLabEpochsUnderLoad: with senders at full speed nothing leaves before its
// epoch is released, by the kernel's own time stamps.
func TestLabEpochsUnderLoad(t *testing.T) {
	const epochs, vifs = 100, 2
	w := newWorld(t, vifs)
	g := w.open(Options{})
	l := startLoad(t, 4, vifs)
	resume, _ := l.quiesce()
	l.epoch.Store(1)
	resume()

	released := make([]time.Time, epochs+2)
	var sealing time.Duration
	for e := uint64(1); e <= epochs; e++ {
		time.Sleep(3 * time.Millisecond)
		resume, _ := l.quiesce()
		start := time.Now()
		must(t, "seal", g.Seal(e))
		sealing += time.Since(start)
		l.epoch.Store(e + 1)
		resume()
		time.Sleep(2 * time.Millisecond) // the way to the backup and back
		released[e] = time.Now()
		must(t, "release", g.Release(e))
	}
	s, err := g.Stats()
	if err != nil || s.Drops > 0 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	released[epochs+1] = time.Now()
	must(t, "release all", g.ReleaseAll())
	got := l.end(w)
	early, perEpoch := 0, map[uint64]int{}
	for _, s := range got {
		perEpoch[s.epoch]++
		if s.epoch > 1 && s.at.Before(released[s.epoch]) {
			if early++; early <= 20 {
				t.Logf("sender %d, frame %d of epoch %d came %v early", s.sender, s.n, s.epoch, released[s.epoch].Sub(s.at))
			}
		}
	}
	if early > 0 {
		t.Errorf("%d frames left before their epoch was released", early)
	}
	if len(perEpoch) < epochs/2 {
		t.Errorf("only %d epochs had output", len(perEpoch))
	}
	l.complete(t, got)
	t.Logf("%d frames in %d epochs over %d vifs; a seal took %v on average", len(got), len(perEpoch), vifs, sealing/epochs)
	must(t, "close", g.Close())
}

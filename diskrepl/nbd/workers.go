package nbd

import (
	"sync"
	"sync/atomic"
)

// workers do what waits, each by a goroutine; those that are done wait for
// more, because a new one has to grow its stack first.
type workers struct {
	wg      sync.WaitGroup
	next    chan func()
	waiting atomic.Int32
}

const keepWorkers = 64 // that wait for more, at most

func newWorkers() *workers { return &workers{next: make(chan func())} }

// run has f done. One goroutine calls it.
func (w *workers) run(f func()) {
	select {
	case w.next <- f:
	default:
		w.wg.Go(func() { w.work(f) })
	}
}

func (w *workers) work(f func()) {
	for ok := true; ok; {
		f()
		if w.waiting.Add(1) > keepWorkers {
			w.waiting.Add(-1)
			return
		}
		f, ok = <-w.next
		w.waiting.Add(-1)
	}
}

// end returns when all is done; run is not called any more.
func (w *workers) end() {
	close(w.next)
	w.wg.Wait()
}

package nbd

import (
	"sync"
	"sync/atomic"
)

// workers run functions that may wait, each on a goroutine. Idle goroutines are
// reused, because a new one has to grow its stack first.
type workers struct {
	wg      sync.WaitGroup
	next    chan func()
	waiting atomic.Int32
}

const keepWorkers = 64 // idle goroutines, at most

func newWorkers() *workers { return &workers{next: make(chan func())} }

// run runs f on a worker. Only one goroutine may call it.
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

// end returns when all functions have returned. run must not be called again.
func (w *workers) end() {
	close(w.next)
	w.wg.Wait()
}

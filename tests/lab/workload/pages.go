package main

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pageSize = 4096
	maxPages = 1 << 20
	maxRate  = 1 << 22
)

// A dirtier writes to so many pages a second, going round a working set.
type dirtier struct {
	mu   sync.Mutex
	stop chan struct{} // ends the present goroutine; nil if there is none
}

func (d *dirtier) set(rate, pages int) error {
	if rate < 0 || rate > maxRate || pages < 0 || pages > maxPages {
		return fmt.Errorf("dirty: %d pages/s in %d pages is out of range", rate, pages)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stop != nil {
		close(d.stop)
		d.stop = nil
	}
	if rate == 0 || pages == 0 {
		return nil
	}
	set, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("dirty: %d pages: %w", pages, err)
	}
	d.stop = make(chan struct{})
	go dirty(set, rate, d.stop)
	return nil
}

func dirty(set []byte, rate int, stop <-chan struct{}) {
	defer unix.Munmap(set)
	pace(rate, stop, func(n uint64) {
		p := n * pageSize % uint64(len(set))
		set[p] = byte(n)
		set[p+1] = byte(n >> 8)
	})
}

// pace calls f with 1, 2, 3 … rate times a second until stop is closed. It works in ticks of a few milliseconds. A
// guest that stood still does not catch up.
func pace(rate int, stop <-chan struct{}, f func(n uint64)) {
	const tick, most = 5 * time.Millisecond, 100 * time.Millisecond
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last, due, n := time.Now(), 0.0, uint64(0)
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		now := time.Now()
		due += float64(rate) * min(now.Sub(last), most).Seconds()
		last = now
		for ; due >= 1; due-- {
			n++
			f(n)
		}
	}
}

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A filler writes to new pages, each once, and can tell later whether they still hold what it wrote. A page that a
// replica lacks shows.
type filler struct {
	mu    sync.Mutex
	stop  chan struct{}
	pages []byte
	done  int // pages written

	looked time.Time // at the free memory
	low    bool      // and there was too little
}

// reserve is the free memory, in KiB, below which the filler waits for more.
const reserve = 7 << 10

// start begins to fill so many pages, at so many a second.
func (f *filler) start(pages, rate int) error {
	if pages <= 0 || pages > maxPages || rate <= 0 || rate > maxRate {
		return fmt.Errorf("fill: %d pages at %d/s are out of range", pages, rate)
	}
	// The memory may be yet to come.
	set, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("fill: %d pages: %w", pages, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		return fmt.Errorf("fill: has begun already")
	}
	f.pages, f.stop = set, make(chan struct{})
	go pace(rate, f.stop, f.next)
	return nil
}

// next fills a page.
func (f *filler) next(uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) > 10*time.Millisecond {
		_, free, err := memory()
		f.looked, f.low = time.Now(), err != nil || free < reserve
	}
	if f.low || (f.done+1)*pageSize > len(f.pages) {
		return
	}
	for at := f.done * pageSize; at < (f.done+1)*pageSize; at += 8 {
		binary.LittleEndian.PutUint64(f.pages[at:], word(at))
	}
	f.done++
}

func word(at int) uint64 { return uint64(at)*0x9e3779b97f4a7c15 + 1 }

// check returns how many pages were filled, and how many of those hold something else now.
func (f *filler) check() (filled, wrong int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for page := range f.done {
		for at := page * pageSize; at < (page+1)*pageSize; at += 8 {
			if binary.LittleEndian.Uint64(f.pages[at:]) != word(at) {
				wrong++
				break
			}
		}
	}
	return f.done, wrong
}

// memory returns what the kernel has in all, and what is free, in KiB.
func memory() (total, free uint64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		fmt.Sscanf(line, "MemTotal: %d kB", &total)
		fmt.Sscanf(line, "MemFree: %d kB", &free)
	}
	return total, free, nil
}

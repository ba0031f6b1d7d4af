package main

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A stallWatch keeps the longest gap between two rounds of a loop that wants to run every few milliseconds: more often
// would cost an emulated guest much of its processor, and even so it does not run before it is asked for. It reads the
// one clock of the guest that goes on while the guest is suspended.
type stallWatch struct {
	begin sync.Once
	mu    sync.Mutex
	max   time.Duration
}

func (s *stallWatch) run() {
	last := boottime()
	for {
		time.Sleep(10 * time.Millisecond)
		now := boottime()
		s.mu.Lock()
		s.max = max(s.max, now-last)
		s.mu.Unlock()
		last = now
	}
}

func boottime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0 // never: the clock is there
	}
	return time.Duration(t.Nano())
}

// take returns the longest gap since the last call; the first one begins to watch.
func (s *stallWatch) take() time.Duration {
	s.begin.Do(func() { go s.run() })
	s.mu.Lock()
	defer s.mu.Unlock()
	longest := s.max
	s.max = 0
	return longest
}

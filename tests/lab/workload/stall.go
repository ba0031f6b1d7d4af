package main

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A stallWatch keeps the longest gap between two rounds of a loop that wants to run every few milliseconds: more often
// would cost an emulated guest much of its processor. It reads the one clock of the guest that goes on while the guest is
// suspended.
type stallWatch struct {
	mu  sync.Mutex
	max time.Duration
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

func (s *stallWatch) take() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	longest := s.max
	s.max = 0
	return longest
}

package main

import (
	"sync"
	"time"
)

// A stallWatch keeps the longest gap between two rounds of a loop that wants to run every millisecond. Time stands
// still or jumps in a suspended guest, so it tells what the guest felt and not what its clients saw.
type stallWatch struct {
	mu  sync.Mutex
	max time.Duration
}

func (s *stallWatch) run() {
	last := time.Now()
	for {
		time.Sleep(time.Millisecond)
		now := time.Now()
		s.mu.Lock()
		s.max = max(s.max, now.Sub(last))
		s.mu.Unlock()
		last = now
	}
}

func (s *stallWatch) take() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	longest := s.max
	s.max = 0
	return longest
}

package xlft_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"xlft/tests/simxen"
	"xlft/xlft"
)

// simEpochMax is the longest epoch of any schedule.
const simEpochMax = 400 * time.Millisecond

// paces returns how the checkpoints of a schedule are taken. The mode comes from the
// seed, and not from the schedule's random numbers: the faults are the same in each.
func (s *sim) paces(seed uint64) xlft.Pacing {
	p := xlft.Pacing{Mode: []xlft.Mode{xlft.ModeInterval, xlft.ModeEvent, xlft.ModeStrict}[seed/12%3], DirtyMax: 9}
	if s.v.mode != "" {
		p.Mode = s.v.mode
	} else if seed/36%4 == 3 {
		s.moods = rand.New(rand.NewPCG(seed, 4))
	}
	p.EpochMax, p.EpochMin, p.WindowMax, p.RunShare = simEpochMax, 5*time.Millisecond, 50*time.Millisecond, 0.5
	if p.Mode == xlft.ModeInterval {
		p.EpochMax = simEpoch
	}
	if s.v.pacing != nil {
		s.v.pacing(&p)
	}
	return p
}

// promptness is how long a packet may wait while nothing is faulty: an epoch's rest, and
// two checkpoints. 0: the hosts are slow, or somebody changes the mode.
func (s *sim) promptness() time.Duration {
	const checkpoints = 100 * time.Millisecond
	switch {
	case s.a.Slow > 0 || s.b.Slow > 0 || s.moods != nil:
		return 0
	case s.pacing.Mode == xlft.ModeInterval:
		return simEpoch + checkpoints
	case s.pacing.Mode == xlft.ModeEvent:
		return 50*time.Millisecond + checkpoints
	}
	return checkpoints
}

// hurry has packets be heard in time, from when the domain is protected until the first
// fault.
func (s *sim) hurry(protected bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if protected && !s.troubled && !s.outside.Prompting() {
		s.outside.Prompt(s.promptness())
	}
}

func (s *sim) calmEnds() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubled = true
	s.outside.Prompt(0)
}

// changeMoods is an operator who changes how checkpoints are taken, whatever happens.
func (s *sim) changeMoods(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(s.moods.IntN(200)) * time.Millisecond):
		}
		_, _, session := s.now()
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		session.Pace(ctx, func(p xlft.Pacing) (xlft.Pacing, error) {
			p.Mode = []xlft.Mode{xlft.ModeInterval, xlft.ModeEvent, xlft.ModeStrict}[s.moods.IntN(3)]
			p.EpochMax = time.Duration(20+s.moods.IntN(100)) * time.Millisecond
			return p, nil
		})
		cancel()
	}
}

// eventsOf returns the events of a simulated gate.
func eventsOf(g xlft.Gate) <-chan struct{} {
	return g.(interface{ Events() <-chan struct{} }).Events()
}

// standing is a gate that checks that a domain takes no step between a strict
// checkpoint's seal and its release. The first copy is none.
type standing struct {
	xlft.Gate
	d  *simxen.Domain
	o  *simxen.Outside
	at *atomic.Uint64
}

func (g standing) Seal(e uint64) error {
	g.at.Store(g.d.Steps())
	return g.Gate.Seal(e)
}

func (g standing) Release(e uint64) error {
	if n := g.d.Steps() - g.at.Load(); e > 1 && n > 0 && !g.d.Gone() {
		g.o.Violate("mode", "the domain took %d steps after strict checkpoint %d, before its output was let out", n, e)
	}
	return g.Gate.Release(e)
}

// deafTo drops the events of a gate.
func deafTo(<-chan struct{}) <-chan struct{} { return nil }

// eagerGuest is resumed after its capture, in any mode.
type eagerGuest struct{ xlft.Guest }

func (g eagerGuest) Save(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	captured := hooks.Captured
	hooks.Captured = func() error { return errors.Join(captured(), g.Guest.Resume()) }
	return g.Guest.Save(ctx, dst, hooks)
}

package xlft_test

import (
	"context"
	"slices"
	"time"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
)

// resolve is a network that breaks with the arbiter, and an operator who decides with
// "xl ft-resolve": one who reaches both hosts, looks at both, and says nothing that is
// not true.
func (s *sim) resolve(at time.Duration, a, b *simxen.Process) {
	byPower, forA := s.shared || s.rng.IntN(2) == 0, s.rng.IntN(2) == 0
	s.tell("%v network cut, arbiter out of reach; an operator decides for A: %v, and takes the other host's power: %v", at, forA, byPower)
	for _, h := range []string{"A", "B"} {
		s.arbiter.Cut(h, true)
		defer s.arbiter.Cut(h, false)
	}
	s.net.Cut(true)
	defer s.net.Cut(false)
	_, _, session := s.now()
	s.mu.Lock()
	receiver := s.receiver
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	waits := func(d xlft.Decision, err error) bool { return err == nil && d.NotNow == "" }
	for range 100 {
		time.Sleep(20 * time.Millisecond)
		if s.a.Down() || s.b.Down() || a.Dead() || b.Dead() {
			return // another fault was quicker
		}
		if session.Status().State == primary.Blocked && waits(receiver.Decision(ctx, simDomain)) {
			break
		}
	}
	// The other host's state is as old as the look at it.
	if !waits(receiver.Decision(ctx, simDomain)) || !waits(session.Decision(ctx)) {
		return
	}
	hereA := func(w xlft.Word) error { _, err := session.Resolve(ctx, w, "sim"); return err }
	hereB := func(w xlft.Word) error { _, err := receiver.Resolve(ctx, simDomain, w, "sim"); return err }
	// The look at one host took its time, in which the other one may have come to run the domain. Whoever takes a host's
	// power looks there at that moment: what it ran, and its clients heard, would be lost.
	claims := slices.ContainsFunc(receiver.Replicas(), func(r backup.Status) bool { return r.Domain == simDomain && r.State == backup.Claiming })
	if st := session.Status().State; byPower && (forA && !claims || !forA && st != primary.Blocked && st != primary.Arbitrating) {
		s.tell("it is decided meanwhile")
		return
	}
	var err error
	switch {
	case byPower && forA:
		s.b.Crash()
		err = hereA(xlft.PeerIsOff)
	case byPower:
		s.a.Crash()
		err = hereB(xlft.PeerIsOff)
	case forA:
		if err = hereB(xlft.GiveUp); err == nil {
			err = hereA(xlft.TakeOver)
		}
	default:
		if err = hereA(xlft.GiveUp); err == nil {
			err = hereB(xlft.TakeOver)
		}
	}
	s.tell("the word is answered: %v", err)
}

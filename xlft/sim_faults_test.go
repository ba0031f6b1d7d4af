package xlft_test

import (
	"context"
	"time"
)

// Some of the faults.
const (
	powerCutA    = 0
	powerCutB    = 2
	receiverStop = 6
	switchOver   = 12 // not a fault
	killAtSaveA  = 18
	killAtSaveB  = 19
	grows        = 20
	givesBack    = 21
	noRoomA      = 22
	noRoomB      = 23
	takeoverBad  = 24
	domainEnds   = 25
	stopAndStart = 26 // not a fault
	operatorSays = 27
	faultKinds   = 28
)

func (s *sim) fault(begun time.Time) {
	at := time.Since(begun).Round(time.Millisecond)
	after := func(f func()) {
		d := time.Duration(s.outside.Rand() % uint64(900*time.Millisecond))
		s.wg.Go(func() { time.Sleep(d); f() })
	}
	if s.a.Down() && s.b.Down() {
		return
	}
	s.calmEnds()
	primary, backup, session := s.now()
	kind := s.rng.IntN(faultKinds)
	if n := len(s.v.faults); n > 0 {
		kind = s.v.faults[s.rng.IntN(n)]
	}
	if kind != switchOver && kind != stopAndStart {
		s.faults++
	}
	switch kind {
	case powerCutA, 1:
		s.tell("%v power cut at A", at)
		s.a.Crash()
	case powerCutB:
		s.tell("%v power cut at B", at)
		s.b.Crash()
	case 3, 4:
		s.tell("%v protector killed", at)
		primary.Kill()
		after(s.protect)
	case 5:
		s.tell("%v receiver killed", at)
		backup.Kill()
		after(s.receive)
	case receiverStop:
		s.tell("%v receiver stopped in order", at)
		backup.Terminate()
		after(s.receive)
	case 7, 8:
		s.tell("%v network cut", at)
		s.net.Cut(true)
		after(func() { s.net.Cut(false) })
	case 9:
		h := []string{"A", "B"}[s.rng.IntN(2)]
		s.tell("%v arbiter out of %s's reach, network cut", at, h)
		s.arbiter.Cut(h, true)
		s.net.Cut(true)
		after(func() { s.arbiter.Cut(h, false) })
		after(func() { s.net.Cut(false) })
	case 10:
		h := []string{"A", "B"}[s.rng.IntN(2)]
		s.tell("%v the arbiter's answers to %s get lost, network cut", at, h)
		s.arbiter.Lossy(h, true)
		s.net.Cut(true)
		after(func() { s.arbiter.Lossy(h, false) })
		after(func() { s.net.Cut(false) })
	case 11:
		n := s.rng.Int64N(80 << 10)
		s.tell("%v next connection breaks after %d bytes, protector's network reset", at, n)
		s.net.TearAfter(n)
		s.net.Cut(true)
		after(func() { s.net.Cut(false) })
	case switchOver:
		s.tell("%v planned switch-over asked", at)
		s.switched = true
		s.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			session.Failover(ctx)
		})
	case 14:
		s.tell("%v a bit of a checkpoint flips on its way", at)
		s.net.FlipNext()
	case 13:
		s.tell("%v domain is deaf to suspend requests", at)
		s.domain.Deafen(true)
		after(func() { s.domain.Deafen(false) })
	case 15:
		h := []string{"A", "B"}[s.rng.IntN(2)]
		s.tell("%v nobody hears %s", at, h)
		s.net.Mute(h, true)
		after(func() { s.net.Mute(h, false) })
	case killAtSaveA, killAtSaveB:
		p, name, again := primary, "protector", s.protect
		if kind == killAtSaveB {
			p, name, again = backup, "receiver", s.receive
		}
		before := s.rng.IntN(2) == 0
		s.tell("%v %s killed at its next record, before it stands: %v", at, name, before)
		p.KillAtSave(before, func() { after(again) })
	case grows:
		s.tell("%v the domain gets more memory", at)
		s.domain.Grow(1 + s.rng.IntN(3))
	case givesBack:
		s.tell("%v the domain gives a page back and takes another", at)
		s.domain.GiveBack()
	case noRoomA, noRoomB:
		name, full := "A", &s.fullA
		if kind == noRoomB {
			name, full = "B", &s.fullB
		}
		s.tell("%v no room for %s's records", at, name)
		full.Store(true)
		after(func() { full.Store(false) })
	case takeoverBad:
		s.tell("%v the next domain that B takes over does not start", at)
		s.badTakeover.Store(true)
	case domainEnds:
		s.tell("%v the domain powers off", at)
		s.domain.End("poweroff")
		s.domainOver.Store(true)
	case stopAndStart:
		s.tell("%v protection stopped by an operator, and begun again", at)
		s.stopped.Store(true)
		primary.Terminate()
		s.wg.Go(func() {
			<-session.Done()
			time.Sleep(time.Duration(s.outside.Rand() % uint64(300*time.Millisecond)))
			if !s.domainOver.Load() {
				primary.Kill()
				s.protect()
			}
		})
	case operatorSays:
		s.resolve(at, primary, backup)
	case 17:
		s.tell("%v disk server killed", at)
		s.domain.RestartDisk()
	case 16:
		s.tell("%v the backup's disk fails", at)
		s.b.Disk().Fail(true)
		after(func() { s.b.Disk().Fail(false) })
	}
}

package primary

import (
	"context"
	"errors"
	"fmt"
	"time"

	"xlft/xlft"
	"xlft/xlft/wire"
)

func (s *Session) offer(ctx context.Context, generation uint64) (o wire.Offer, err error) {
	o = s.Offer
	if s.Describe != nil {
		if o, err = s.Describe(); err != nil {
			return o, err
		}
	}
	o.Domain, o.Generation = s.Domain, generation
	if o.UUID != s.Offer.UUID {
		// Both hosts' claims name it.
		return o, fmt.Errorf("the domain has UUID %s, and had %s when its protection began", o.UUID, s.Offer.UUID)
	}
	o.FailureTimeout, o.MaxEpoch = s.Settings.FailureTimeout, uint64(s.Settings.SpoolLimit)
	o.Arbiter, err = xlft.ArbiterName(ctx, s.Arbiter)
	return o, err
}

func (s *Session) connect(ctx context.Context, generation uint64) {
	var l *link
	o, err := s.offer(ctx, generation)
	if err == nil {
		// A gate that does not hold would be found out after the first copy.
		_, _, err = s.Gates.Held()
	}
	if err == nil {
		l, err = openLink(ctx, s.Dial, s.Software, o, s.Settings)
	}
	if err != nil {
		var r *wire.Refusal
		if errors.As(err, &r) {
			switch r.Code {
			case wire.CodeRunning:
				err = fmt.Errorf("%w: %w", ErrBothRun, err)
			case wire.CodeGeneration:
				if r.Generation >= generation && r.Generation < maxGeneration {
					s.post(ctx, behind{ConnectFailed{err}, r.Generation})
					return
				}
			}
		}
		s.post(ctx, ConnectFailed{err})
		return
	}
	select {
	case s.events <- opened{Connected{}, l}:
	case <-ctx.Done():
		l.close()
	}
}

// beginSession starts the link, and has the disks copied.
func (s *Session) beginSession(ctx context.Context) {
	l := s.link
	s.status.set(func(st *Status) { st.SyncTotal = s.Offer.MaxMemKiB << 10 })
	post := func(ev Event) { s.post(ctx, linked{ev, l}) }
	s.spawn(func() {
		l.run(post, func(epoch uint64, p piece, wired uint64, kept int64) {
			s.status.sent(epoch, p, wired, kept)
			if epoch > 1 && p.last {
				s.trigger.wrote(p.stats.Pages)
			}
		})
	})
	s.spawn(func() {
		if d := s.Gates.Disks; d != nil {
			lost := func(err error) { post(DisksLost{fmt.Errorf("disks: %w", err)}) }
			if err := d.Replicate(l.ctx, l.session, lost); err != nil {
				lost(err)
				return
			}
		}
		post(DisksSynced{})
	})
	if s.Same != nil {
		s.spawn(func() {
			t := time.NewTicker(sameEvery)
			defer t.Stop()
			for {
				select {
				case <-l.ctx.Done():
					return
				case <-t.C:
				}
				if err := s.Same(l.offer); err != nil {
					post(DomainChanged{err})
					return
				}
			}
		})
	}
}

// sameEvery is the time between two looks at the domain's devices.
const sameEvery = 10 * time.Second

// maxGeneration is far beyond what changes of owner can count to.
const maxGeneration = 1 << 48

// behind says that the backup knows a newer generation.
type behind struct {
	Event
	generation uint64
}

// delay is the time to the next try.
func (s *Session) delay(failed bool) time.Duration {
	d, most := s.Settings.RetryDelay, s.Settings.RetryMax
	if most == 0 {
		most = 12 * d
	}
	if !failed {
		return d
	}
	if !s.protected.IsZero() && time.Since(s.protected) > most {
		s.failures = 0
	}
	s.protected = time.Time{}
	for range s.failures {
		if d *= 2; d >= most {
			return most
		}
	}
	s.failures++
	return d
}

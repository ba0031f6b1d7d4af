package xlft_test

import (
	"context"
	"errors"
	"time"

	"xlft/tests/simxen"
	"xlft/xlft/internal/steward"
)

// In half of the schedules of the wide world it is no operator who starts protections but
// each host's steward, with both other hosts as backups.

// look has all stewards look at their hosts. It is the operator's goroutine that does.
func (w *world) look(ctx context.Context) {
	if w.stewards == nil {
		return
	}
	for i, h := range w.hosts {
		s := w.stewards[h]
		if h.Down() || w.receivers[h] == nil || w.receivers[h].process.Dead() {
			delete(w.stewards, h) // it ends with the receiver
			continue
		}
		if s == nil {
			backups := []string{w.hosts[(i+1)%3].Name, w.hosts[(i+2)%3].Name}
			s = &steward.Steward{Host: &stewarded{w, h}, Log: w.log.Named(h.Name), Plan: func(string) steward.Plan { return steward.Plan{Protect: true, Backups: backups} }}
			w.stewards[h] = s
		}
		s.Look(ctx)
	}
}

// moveAfter is how long a protector waits for a lost backup where there is a steward.
func (w *world) moveAfter() time.Duration {
	if w.stewards == nil {
		return 0
	}
	return 5 * time.Second
}

// stewarded is a host of the wide world as a steward sees it.
type stewarded struct {
	w *world
	h *simxen.Host
}

func (s *stewarded) Domains() (list []steward.Domain, err error) {
	if s.w.refuses[s.h].err(refusesLooks) != nil {
		return nil, errRefused
	}
	for _, name := range s.w.names {
		// A domain that the receiver has not recorded as running here yet is not whole.
		d := s.h.Domain(name)
		if d == nil || d.Gone() {
			continue
		}
		if o, err := s.w.records[s.h].Load(name); err == nil && o.Pending {
			continue
		}
		list = append(list, steward.Domain{Name: name, Instance: d.Name})
	}
	return list, nil
}

func (s *stewarded) Busy(_ context.Context, domain string) (bool, error) {
	d := s.h.Domain(domain)
	if d == nil {
		return false, errors.New("it is gone")
	}
	x := s.w.of(s.h, d)
	// One that died, or can't begin yet, comes back.
	return x != nil && (!isClosed(x.ended) || x.process.Dead() || s.w.waits(x)), nil
}

func (s *stewarded) Stopped(steward.Domain) (bool, time.Time) { return false, time.Time{} }
func (s *stewarded) Why(string) string                        { return "" }

func (s *stewarded) Try(_ context.Context, domain, backup string) error {
	var x *protection
	err := errors.New("it is gone, or has a protector")
	ended := make(chan struct{})
	select {
	case s.w.orders <- func() {
		defer close(ended)
		d := s.h.Domain(domain)
		if s.h.Down() || d == nil || d.Gone() {
			return
		}
		if busy, _ := s.Busy(context.Background(), domain); busy {
			return
		}
		for _, b := range s.w.hosts {
			if b.Name == backup && b.Down() {
				err = errors.New("it is down")
				return
			}
		}
		s.w.protect(s.h, d, backup)
		x = s.w.of(s.h, d)
	}:
	case <-s.w.stop:
		return errors.New("this is the end of the world")
	}
	<-ended
	for x != nil {
		if x.session.Protected() {
			return nil
		}
		select {
		case <-x.ended:
			return errors.New("it has ended")
		case <-s.w.stop:
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
	return err
}

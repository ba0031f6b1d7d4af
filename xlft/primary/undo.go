package primary

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
)

// What a protection did to the domain is undone at its end: the output flows, and the
// domain runs. The kernel or the hypervisor may refuse that for a moment; a domain
// that is stuck for it would be a host's death made worse.

// tries calls something that has to be done.
type tries func(func() error) error

// once tries once.
func once(f func() error) error { return f() }

// insist tries until it is done, for some seconds, as long as there is a domain.
func (s *Session) insist(f func() error) error {
	for begun, nap := time.Now(), firstNap; ; nap = min(2*nap, longestNap) {
		err := f()
		if err == nil || errors.Is(err, xlft.ErrNotPaused) || time.Since(begun) >= insistMost {
			return err
		}
		if st, _, serr := s.Guest.State(); serr == nil && st == xlft.GuestOver {
			return err
		}
		time.Sleep(nap)
	}
}

const (
	firstNap   = 20 * time.Millisecond
	longestNap = time.Second
	insistMost = 5 * time.Second
)

// letGo lets all output out, and the domain run.
func (s *Session) letGo(try tries) {
	s.left("release all held output", try(s.Gates.ReleaseAll))
	s.left("resume the domain", try(s.resumeLeftover))
}

// left notes what could not be done. It is tried again before the next Connect.
func (s *Session) left(what string, err error) {
	if err == nil {
		return
	}
	err = fmt.Errorf("%s: %w", what, err)
	if s.said.New("stuck", err.Error()) {
		s.Log.Error("the domain does not run, or its output is held", zap.Error(err))
	}
	s.stuck = errors.Join(s.stuck, err)
	s.status.set(func(v *Status) { v.LastError = s.stuck.Error() })
}

// undo does what is left to do.
func (s *Session) undo() error {
	if s.stuck == nil {
		return nil
	}
	s.stuck = nil
	s.letGo(once)
	s.unpause(once)
	if s.stuck == nil {
		s.said.Forget("stuck")
		s.Log.Warn("the domain runs, and its output flows")
	}
	return s.stuck
}

// closeGates takes the gates down, with which all output is let out.
func (s *Session) closeGates() {
	err := s.insist(s.Gates.Close)
	if err != nil {
		s.left("take down the gates", err)
		return
	}
	if s.stuck != nil {
		s.stuck = nil
		s.left("resume the domain", once(s.resumeLeftover))
		s.unpause(once)
	}
}

// exits is an end of the session as it really is: an operator who stopped a
// protection has to hear that the domain is not free of it.
func (s *Session) exits(a Exit) Exit {
	if a.Outcome != Stopped && a.Outcome != Failed || s.stuck == nil {
		return a
	}
	err := fmt.Errorf("the protection has ended, and the domain does not run, or its output is held: %w; \"xl ft-start %s\" tries again", s.stuck, s.Domain)
	return Exit{Failed, errors.Join(a.Err, err)}
}

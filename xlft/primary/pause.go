package primary

import (
	"time"

	"go.uber.org/zap"
)

// pause stops the domain's vCPUs. Xen counts pauses, xl's among them, so each of
// ours is undone once, by this protector or its successor: the record comes
// first. A domain whose pause can't be recorded runs on: its output is held.
func (s *Session) pause() {
	err := s.recordPaused(true)
	if err == nil {
		err = s.Guest.Pause()
	}
	if err != nil {
		s.Log.Error("pause the domain; it runs, with its output held", zap.Error(err))
		s.recordPaused(false)
	}
}

// A domain that can't be unpaused is tried again, this often and after this time.
const (
	unpauseTries = 5
	unpauseNap   = 100 * time.Millisecond
)

// unpause undoes pause, if it had an effect. The record of a pause that can't be
// undone stays, for the protector that comes next.
func (s *Session) unpause() {
	if !s.ownership.Paused {
		return
	}
	err := s.Guest.Unpause()
	for n := 1; err != nil && n < unpauseTries; n++ {
		time.Sleep(unpauseNap)
		err = s.Guest.Unpause()
	}
	if err != nil {
		s.Log.Error("unpause the domain; it stands still until its next protector begins, or \"xl unpause\"", zap.Error(err))
		return
	}
	s.recordPaused(false)
}

// Quiesce pauses the domain until resume is called: for its gate, which does that in
// the moment in which it is taken down. The pause is recorded as any other, for a
// process that is killed in that moment. A domain whose pause can't be recorded, or
// that stands still already, is not paused.
//
// It may be called by what the session calls, in the session's loop.
func (s *Session) Quiesce() (resume func(), err error) {
	if !s.began || s.ownership.Paused {
		return func() {}, nil
	}
	if s.recordPaused(true) != nil {
		s.recordPaused(false)
		return func() {}, nil
	}
	if err := s.Guest.Pause(); err != nil {
		s.recordPaused(false)
		return nil, err
	}
	return s.unpause, nil
}

func (s *Session) recordPaused(paused bool) error {
	s.ownership.Paused = paused
	err := s.Store.Save(s.Domain, s.ownership)
	if err != nil {
		s.Log.Error("record whether the domain is paused", zap.Error(err))
	}
	return err
}

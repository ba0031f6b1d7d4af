package primary

import (
	"errors"

	"go.uber.org/zap"

	"xlft/xlft"
)

// pause stops the domain's vCPUs. Xen counts pauses, xl's among them, so each of
// ours is undone once, by this protector or its successor: the record comes
// first. A domain whose pause can't be recorded runs on: its output is held. One whose
// last pause could not be undone is paused already.
func (s *Session) pause() {
	if s.ownership.Paused {
		return
	}
	err := s.recordPaused(true)
	if err == nil {
		err = s.insist(s.Guest.Pause)
	}
	if err != nil {
		s.Log.Error("pause the domain; it runs, with its output held", zap.Error(err))
		s.recordPaused(false)
	}
}

// unpause undoes pause, if it had an effect. The record stays until that is done.
func (s *Session) unpause(try tries) {
	if !s.ownership.Paused {
		return
	}
	err := try(s.Guest.Unpause)
	if errors.Is(err, xlft.ErrNotPaused) {
		s.Log.Warn("somebody else has unpaused the domain", zap.Error(err))
		err = nil
	}
	s.left("unpause the domain", err)
	if err == nil {
		s.recordPaused(false)
	}
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
	return func() { s.unpause(s.insist) }, nil
}

func (s *Session) recordPaused(paused bool) error {
	s.ownership.Paused = paused
	err := s.Store.Save(s.Domain, s.ownership)
	if err != nil {
		s.Log.Error("record whether the domain is paused", zap.Error(err))
	}
	return err
}

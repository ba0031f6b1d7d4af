package primary

import (
	"errors"

	"go.uber.org/zap"

	"xlft/xlft"
)

// pause stops the domain's vCPUs. Xen counts pauses, xl's among them, so each of
// ours is undone once, by this protector or its successor: the record comes
// first. A domain whose pause can't be recorded runs on: its output is held.
func (s *Session) pause() {
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

func (s *Session) recordPaused(paused bool) error {
	s.ownership.Paused = paused
	err := s.Store.Save(s.Domain, s.ownership)
	if err != nil {
		s.Log.Error("record whether the domain is paused", zap.Error(err))
	}
	return err
}

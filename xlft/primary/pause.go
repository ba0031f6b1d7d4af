package primary

import "go.uber.org/zap"

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

// unpause undoes pause, if it had an effect.
func (s *Session) unpause() {
	if !s.ownership.Paused {
		return
	}
	if err := s.Guest.Unpause(); err != nil {
		s.Log.Error("unpause the domain", zap.Error(err))
	}
	s.recordPaused(false)
}

func (s *Session) recordPaused(paused bool) error {
	s.ownership.Paused = paused
	err := s.Store.Save(s.Domain, s.ownership)
	if err != nil {
		s.Log.Error("record whether the domain is paused", zap.Error(err))
	}
	return err
}

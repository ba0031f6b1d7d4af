package primary

import (
	"context"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
)

// watchGuest looks for the domain's own end.
func (s *Session) watchGuest(ctx context.Context) {
	t := time.NewTicker(guestPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		st, why, err := s.Guest.State()
		if err != nil {
			s.Log.Warn("look at the domain", zap.Error(err))
			continue
		}
		if st == xlft.GuestOver {
			s.post(ctx, GuestEnded{why})
			return
		}
	}
}

// guestPoll is the time between two looks for the domain's own end.
const guestPoll = time.Second

// resumeLeftover resumes a domain that an earlier protector, or the last save, left
// suspended. What another program has suspended is left to that program.
func (s *Session) resumeLeftover() error {
	st, _, err := s.Guest.State()
	if err == nil && st == xlft.GuestSuspended {
		err = s.Guest.Resume()
	}
	return err
}

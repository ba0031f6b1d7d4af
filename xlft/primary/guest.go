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
		switch st {
		case xlft.GuestOver:
			s.post(ctx, GuestEnded{why})
			return
		case xlft.GuestSuspended:
			// A domain may suspend long after it was asked to.
			s.ask(ctx, request{do: func(context.Context) { //nolint:errcheck // the session ends
				if s.m.State() == Connecting {
					s.left("resume the domain", once(s.resumeLeftover))
				}
			}})
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

package primary

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"xlft/xlft"
)

// Done is closed when Run is over.
func (s *Session) Done() <-chan struct{} {
	s.init()
	return s.done
}

// Result returns how the session ended, and Run's error, once Done is closed. The
// outcome is "" if it could not begin: what an earlier protector left is as it was.
func (s *Session) Result() (Outcome, error) { return s.exit.Outcome, s.exit.Err }

// Again reports, once Done is closed, whether the domain is to be protected again
// should it be started again: it ended by itself, nobody asked for an end of the
// protection, and proven says whether the domain was protected.
func (s *Session) Again() (again, proven bool) {
	return s.exit.Outcome == DomainEnded && errors.Is(s.exit.Err, xlft.ErrGuestEnded) && !s.stopped.Load(), s.m.proven
}

// A request is what an operator, or a watchdog, asks of the loop.
type request struct {
	ev     Event      // nil: only to be answered
	answer chan error // has room for one
	do     func(context.Context)
}

// Stop ends protection. It returns when the session has ended, and how.
func (s *Session) Stop(ctx context.Context) (Outcome, error) {
	s.stopped.Store(true)
	if err := s.ask(ctx, request{ev: StopAsked{}}); err != nil {
		return "", err
	}
	select {
	case <-s.done:
		return s.Result()
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Failover moves the domain to the backup. It returns when the session has
// ended, and how; or, with an error and no Outcome, when the switch-over did not
// happen and the session goes on. It is refused unless the domain is protected.
func (s *Session) Failover(ctx context.Context) (Outcome, error) {
	r := request{ev: FailoverAsked{}, answer: make(chan error, 1)}
	if err := s.ask(ctx, r); err != nil {
		return "", err
	}
	select {
	case <-s.done:
		o, err := s.Result()
		if err == nil && o != SwitchedOver {
			err = fmt.Errorf("the switch-over did not happen: the protection has ended (%s)", o)
		}
		return o, err
	case err := <-r.answer:
		return "", err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Pace changes when checkpoints are taken, from what is in effect now, and returns
// what is then. It lasts until the session ends. An error of change changes nothing.
func (s *Session) Pace(ctx context.Context, change func(xlft.Pacing) (xlft.Pacing, error)) (p xlft.Pacing, err error) {
	if over := s.inLoop(ctx, func(work context.Context) {
		now, _ := s.trigger.paced()
		if p, err = change(now); err == nil {
			s.pace(work, p)
		}
	}); over != nil {
		return p, over
	}
	return p, err
}

// inLoop has the loop call f. An error means that f was not called.
func (s *Session) inLoop(ctx context.Context, f func(work context.Context)) error {
	answered := make(chan struct{})
	r := request{do: func(work context.Context) {
		defer close(answered)
		f(work)
	}}
	if err := s.ask(ctx, r); err != nil {
		return err
	}
	select {
	case <-answered:
		return nil
	case <-s.done:
	}
	select {
	case <-answered: // and then it ended
		return nil
	default:
		return fmt.Errorf("%s: the protection has ended", s.Domain)
	}
}

// pace puts a pacing into effect.
func (s *Session) pace(ctx context.Context, p xlft.Pacing) {
	s.trigger.pace(p)
	s.Log.Info("checkpoints are taken otherwise", zap.Any("pacing", p))
	s.step(ctx, Paced{Strict: p.Mode == xlft.ModeStrict})
	if s.m.Idle() {
		s.awaitCheckpoint() // epochs may be longer than they were
	}
}

// Alive returns once the session's loop has answered: a watchdog's question.
func (s *Session) Alive(ctx context.Context) error { return s.ask(ctx, request{}) }

// ask gives the loop a request. It returns nil without delivering the request if
// the session has ended; callers see that by done.
func (s *Session) ask(ctx context.Context, r request) error {
	s.init()
	select {
	case s.requests <- r:
		return nil
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// serve takes a request.
func (s *Session) serve(ctx context.Context, r request) {
	switch r.ev.(type) {
	case nil:
		if r.do != nil {
			r.do(ctx)
		}
		return
	case FailoverAsked:
		if st := s.m.State(); st != Protected {
			r.answer <- fmt.Errorf("%s is not protected now (%v)", s.Domain, st)
			return
		}
		s.failovers = append(s.failovers, r.answer)
	}
	s.step(ctx, r.ev)
}

// answerFailovers answers operators whose switch-over does not happen. A
// switch-over that happens ends the session, which answers them too.
func (s *Session) answerFailovers() {
	st := s.m.State()
	if st == Protected || st == HandingOver || st == Ended {
		return
	}
	for _, answer := range s.failovers {
		answer <- fmt.Errorf("the switch-over did not happen (%v): %s", st, s.status.lastError())
	}
	s.failovers = nil
}

package primary

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// withdraw takes the claim under way back, if there is one.
func (s *Session) withdraw() {
	if s.withdrawn != nil {
		close(s.withdrawn)
		s.withdrawn = nil
	}
}

// undecided reports whether the domain waits for a decision in a state. While the
// arbiter can't be asked the one leads to the other, again and again.
func undecided(st State) bool { return st == Arbitrating || st == Blocked }

// Decision returns what is known of a domain that waits for a decision. The hosts
// that may run the domain are asked, and nothing is changed by that.
func (s *Session) Decision(ctx context.Context) (xlft.Decision, error) {
	d, dec, err := s.decision(ctx)
	if err != nil || d.NotNow != "" {
		return d, err
	}
	d.Answers = s.answers(ctx, dec)
	return d, nil
}

// decision is Decision, of what this host knows alone.
func (s *Session) decision(ctx context.Context) (d xlft.Decision, dec decider, err error) {
	err = s.inLoop(ctx, func(context.Context) {
		st := s.m.State()
		dec = s.decider
		d = xlft.Decision{
			Domain: s.Domain, Host: xlft.Primary, Peer: dec.peer, State: st.String(), Since: s.waits, Generation: dec.generation,
			Epoch: s.m.Acked(), Arbiter: s.Arbiter.String(), Handed: s.ownership.Handed,
		}
		for _, disk := range s.Offer.Disks {
			d.Shared = d.Shared || disk.Shared
		}
		if !undecided(st) {
			d.NotNow, d.Since = fmt.Sprintf("its protection is %v", st), time.Time{}
		}
	})
	v := s.Status()
	d.LastAck = v.LastAck
	if d.NotNow == "" {
		d.Said = v.LastError
	}
	return d, dec, err
}

// answers asks the hosts that may run the domain what it is to them.
func (s *Session) answers(ctx context.Context, d decider) []xlft.Answer {
	all := []decider{d}
	if d.generation == 0 && len(s.Peers) > 0 && s.DialPeer != nil {
		all = nil
		for _, name := range s.Peers {
			all = append(all, decider{name, s.DialPeer(name), 0})
		}
	}
	patience := min(2*s.Settings.FailureTimeout, wire.OwnerTimeout)
	answers := make(chan xlft.Answer, len(all))
	for _, d := range all {
		go func() {
			ask, cancel := wire.AwakeTimeout(ctx, patience)
			defer cancel()
			answers <- xlft.AnswerOf(ask, d.peer, func(ctx context.Context) (r wire.OwnerResult, err error) {
				q := wire.OwnerQuery{Domain: s.Domain, UUID: s.Offer.UUID, Generation: d.generation, Patience: patience}
				err = wire.Ask(ctx, d.dial, s.Software, wire.TypeOwner, q, wire.TypeOwnerResult, &r)
				if r.Role == wire.RoleRunning && r.Generation < d.generation {
					r.Role = wire.RoleNone // an earlier owner of the domain
				}
				return r, err
			})
		}()
	}
	said := make([]xlft.Answer, len(all))
	for range all {
		a := <-answers
		for i, d := range all {
			if d.peer == a.Host {
				said[i] = a
			}
		}
	}
	return said
}

// Resolve takes an operator's word on a domain that waits for a decision; by names the
// operator. It returns what was known, when the word is in effect: the domain runs
// here, or is gone. It is refused if nothing waits, or if another host says otherwise.
func (s *Session) Resolve(ctx context.Context, w xlft.Word, by string) (xlft.Decision, error) {
	d, dec, err := s.decision(ctx)
	if err != nil {
		return d, err
	}
	if d.NotNow == "" {
		d.Answers = s.answers(ctx, dec)
	}
	if err := d.Refuses(w); err != nil {
		return d, err
	}
	late := false
	err = s.inLoop(ctx, func(work context.Context) {
		if late = !undecided(s.m.State()) || s.decider.generation != dec.generation || s.decider.peer != dec.peer; late {
			d.NotNow = fmt.Sprintf("meanwhile it was decided (%v)", s.m.State())
			return
		}
		s.Log.Warn("an operator's word decides who runs the domain", zap.String("word", string(w)), zap.String("by", by), zap.Uint64("generation", dec.generation),
			zap.Stringer("state", s.m.State()), zap.String("arbiter_said", d.Said), zap.Stringers("answers", d.Answers))
		s.step(work, Resolved{Here: w.Here()})
	})
	if err == nil && late {
		err = d.Refuses(w)
	}
	if err != nil {
		return d, err
	}
	d.Word = w
	for {
		changed := s.Changed()
		st := s.Status().State
		if d.State = st.String(); !undecided(st) && st != Detaching && st != Ended {
			break
		}
		select {
		case <-s.done:
			if o, err := s.Result(); (o == GivenUp || o == TakenOver) == w.Here() {
				return d, fmt.Errorf("%s: it was decided otherwise meanwhile (%s): %w", s.Domain, o, err)
			}
			return d, nil
		case <-changed:
		case <-ctx.Done():
			return d, ctx.Err()
		}
	}
	if !w.Here() {
		return d, fmt.Errorf("%s was not given up: meanwhile it was decided that it runs here", s.Domain)
	}
	return d, nil
}

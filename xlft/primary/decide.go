package primary

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// decider is the host that may run the domain instead of this one, and what to ask
// it.
type decider struct {
	peer       string
	dial       wire.Dialer
	generation uint64 // 0: unknown
}

// fresh is the record of a domain that this host alone runs.
func (s *Session) fresh(generation uint64) xlft.Ownership {
	return xlft.Ownership{
		Generation: generation, Role: xlft.HostPrimary, Peer: s.Peer, UUID: s.Offer.UUID, Instance: s.Instance, Begun: true,
		Took: s.ownership.Took, Paused: s.ownership.Paused, Proven: s.ownership.Proven || s.m.proven,
		Anew: s.ownership.Anew && !s.m.proven,
	}
}

func (s *Session) askOwner(ctx context.Context, d decider) {
	role, err := s.ownerRole(ctx, d)
	s.post(ctx, decided{Owner{role}, d.generation, err})
}

// ownerRole asks who owns the domain; "" if that can't be asked. If nothing is recorded
// of the domain, any host may run it: all are asked, and one that can't be leaves it
// open.
func (s *Session) ownerRole(ctx context.Context, d decider) (wire.Role, error) {
	if d.generation != 0 || len(s.Peers) == 0 || s.DialPeer == nil {
		return s.roleOf(ctx, d)
	}
	roles, errs := make([]wire.Role, len(s.Peers)), make([]error, len(s.Peers))
	var wg sync.WaitGroup
	for i, name := range s.Peers {
		wg.Go(func() { roles[i], errs[i] = s.roleOf(ctx, decider{name, s.DialPeer(name), 0}) })
	}
	wg.Wait()
	answer := wire.RoleNone
	for _, r := range roles {
		switch {
		case r == wire.RoleRunning || answer == wire.RoleRunning:
			answer = wire.RoleRunning
		case r != wire.RoleNone:
			answer = r
		}
	}
	return answer, errors.Join(errs...)
}

// runsElsewhere returns an error if a host that is not to be the backup says that it runs
// the domain: a backup refuses a domain that it runs, and another one knows nothing of that.
// Nothing is changed, and who can't be asked says nothing.
func (s *Session) runsElsewhere(ctx context.Context) error {
	if s.DialPeer == nil {
		return nil
	}
	patience := min(2*s.Settings.FailureTimeout, wire.OwnerTimeout)
	ask, cancel := wire.AwakeTimeout(ctx, patience)
	defer cancel()
	errs := make([]error, len(s.Peers))
	var wg sync.WaitGroup
	for i, name := range s.Peers {
		if name == s.Peer {
			continue
		}
		wg.Go(func() {
			var r wire.OwnerResult
			// Of this generation nobody has a record: what counts is what runs there.
			q := wire.OwnerQuery{Domain: s.Domain, UUID: s.Offer.UUID, Generation: maxGeneration, Patience: patience}
			if err := wire.Ask(ask, s.DialPeer(name), s.Software, wire.TypeOwner, q, wire.TypeOwnerResult, &r); err == nil && r.Role == wire.RoleRunning {
				errs[i] = fmt.Errorf("%w: %s", ErrBothRun, name)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// roleOf asks one host; "" if it can't be asked.
func (s *Session) roleOf(ctx context.Context, d decider) (wire.Role, error) {
	ask, cancel := wire.AwakeTimeout(ctx, wire.OwnerTimeout)
	defer cancel()
	var r wire.OwnerResult
	err := wire.Ask(ask, d.dial, s.Software, wire.TypeOwner,
		wire.OwnerQuery{Domain: s.Domain, UUID: s.Offer.UUID, Generation: d.generation, Reclaim: true, Patience: wire.OwnerTimeout}, wire.TypeOwnerResult, &r)
	role := r.Role
	switch {
	case err != nil:
		if s.said.New("owner "+d.peer, err.Error()) {
			s.Log.Warn("a peer can't say who owns the domain", zap.String("peer", d.peer), zap.Error(err))
		}
		return "", fmt.Errorf("%s can't say who owns the domain: %w", d.peer, err)
	case role == wire.RoleRunning && r.Generation < d.generation:
		role = wire.RoleNone // an earlier owner of the domain
	}
	return role, nil
}

// errNoRecord: no arbiter can be asked about a generation that nobody knows.
var errNoRecord = errors.New("the record of this domain is lost: only the backup can say whether the domain runs there; it is asked again")

// verdicts are a backup's words as an arbiter's.
var verdicts = map[wire.Role]xlft.Verdict{wire.RoleNone: xlft.Won, wire.RoleRunning: xlft.Lost}

// decided marks the answer to a claim or to the question who owns the domain, so
// that an answer about an earlier generation is told apart. Why, if not nil, is why
// nothing was decided.
type decided struct {
	Event
	generation uint64
	why        error
}

// sameArbiter says why this session's arbiter may not decide: both hosts agreed on
// another one, and the configuration was changed since. One that can't be asked which it
// is decides nothing itself.
func (s *Session) sameArbiter(ctx context.Context, agreed string) error {
	name, err := xlft.ArbiterName(ctx, s.Arbiter)
	if agreed == "" || err != nil || name == agreed {
		return nil
	}
	return fmt.Errorf("both hosts agreed on %q, and now the configuration has %q: they could both win. Make [arbiter] what it was, or decide by \"xl ft-resolve %s\"", agreed, name, s.Domain)
}

func (s *Session) claim(ctx context.Context, d decider, agreed string, handed bool, withdrawn <-chan struct{}) {
	c := xlft.Claim{Domain: s.Domain, UUID: s.Offer.UUID, Generation: d.generation, Side: xlft.Primary, Peer: d.peer, Handed: handed, Withdrawn: withdrawn}
	var v xlft.Verdict
	var err error
	if d.generation != 0 {
		if err = s.sameArbiter(ctx, agreed); err == nil {
			v, err = xlft.Arbitrate(ctx, s.Arbiter, c)
		}
		if err == nil { // which one it is may have come out only now
			err = s.sameArbiter(ctx, agreed)
		}
		if err != nil {
			v = xlft.Unreachable
		}
	} else {
		var role wire.Role
		role, err = s.ownerRole(ctx, d)
		if v = verdicts[role]; v == xlft.Unreachable {
			err = errors.Join(errNoRecord, err)
		} else {
			err = nil // one that runs the domain is enough
		}
	}
	if s.said.New("arbiter", fmt.Sprint(v, err)) {
		f := []zap.Field{zap.Stringer("arbiter", s.Arbiter), zap.Uint64("generation", d.generation), zap.Stringer("verdict", v), zap.Error(err)}
		if v == xlft.Unreachable {
			f = append(f, zap.String("decide_by", "xl ft-resolve "+s.Domain))
		}
		s.Log.Warn("arbiter asked", f...)
	}
	switch {
	case err == nil && v == xlft.Lost && handed:
		err = fmt.Errorf("%s has claimed the domain that it was handed, and does not say yet whether it runs there", d.peer)
	case err != nil:
		err = fmt.Errorf("the arbiter, %v, has not decided who runs the domain: %w", s.Arbiter, err)
	}
	s.post(ctx, decided{Arbitrated{v}, d.generation, err})
}

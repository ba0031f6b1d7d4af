package primary

import (
	"context"
	"fmt"

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
		Generation: generation, Role: xlft.HostPrimary, Peer: s.Peer, UUID: s.Offer.UUID, Instance: s.Instance,
		Took: s.ownership.Took, Paused: s.ownership.Paused,
	}
}

func (s *Session) askOwner(ctx context.Context, d decider) {
	ask, cancel := wire.AwakeTimeout(ctx, wire.OwnerTimeout)
	defer cancel()
	var r wire.OwnerResult
	err := wire.Ask(ask, d.dial, s.Software, wire.TypeOwner,
		wire.OwnerQuery{Domain: s.Domain, UUID: s.Offer.UUID, Generation: d.generation, Reclaim: true}, wire.TypeOwnerResult, &r)
	role := r.Role
	switch {
	case err != nil:
		if s.said.New("owner", err.Error()) {
			s.Log.Warn("the backup can't say who owns the domain", zap.String("peer", d.peer), zap.Error(err))
		}
		role = ""
	case role == wire.RoleRunning && r.Generation < d.generation:
		role = wire.RoleNone // an earlier owner of the domain
	}
	s.post(ctx, Owner{role})
}

func (s *Session) claim(ctx context.Context, d decider, handed bool) {
	c := xlft.Claim{Domain: s.Domain, UUID: s.Offer.UUID, Generation: d.generation, Side: xlft.Primary, Peer: d.peer, Handed: handed}
	v, err := xlft.Arbitrate(ctx, s.Arbiter, c)
	if s.said.New("arbiter", fmt.Sprint(v, err)) {
		s.Log.Warn("arbiter asked", zap.Stringer("arbiter", s.Arbiter), zap.Uint64("generation", d.generation), zap.Stringer("verdict", v), zap.Error(err))
	}
	s.post(ctx, Arbitrated{v})
}

package backup

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// errReclaimed: the primary came back and keeps the domain.
var errReclaimed = errors.New("the primary came back and keeps the domain")

// owner answers whether this host owns a domain. What it goes by, in this order:
// the session that there is; what this host ever took over; and what is really
// here.
func (r *Receiver) owner(ctx context.Context, q wire.OwnerQuery, peer string) (wire.OwnerResult, error) {
	// Only a side of the protection has a say in it.
	if s := r.session(q.Domain); s != nil && s.peer == peer {
		if q.Reclaim {
			s.ask(ctx, DestroyAsked{errReclaimed, true})
		}
		// A claim or a takeover that is under way decides first.
		// An asker that got no answer in its time would take this host for dead.
		patience := wire.OwnerTimeout
		if q.Patience > 0 {
			patience = min(patience, q.Patience)
		}
		wait, cancel := context.WithTimeout(ctx, patience/2)
		defer cancel()
		st := s.settled(wait, q.Reclaim)
		switch {
		case st == Running:
			return wire.OwnerResult{Role: wire.RoleRunning, Generation: s.offer.Generation}, nil
		case st == Destroyed && s.isGivenUp() && s.offer.Generation >= q.Generation:
			// It may take long to destroy it, but nothing will run it.
			return wire.OwnerResult{Role: wire.RoleNone, Generation: s.offer.Generation}, nil
		case st == Destroyed:
		default:
			return wire.OwnerResult{Role: wire.RoleReplica, Generation: s.offer.Generation}, nil
		}
	}
	rec, err := r.ownership(q.Domain)
	if err != nil {
		return wire.OwnerResult{}, err
	}
	if rec.UUID != "" && q.UUID != "" && !xlft.SameUUID(rec.UUID, q.UUID) {
		rec = xlft.Ownership{} // another domain's, which had the name
	}
	answer := wire.OwnerResult{Role: wire.RoleNone, Generation: rec.Generation}
	if q.Generation > 0 && rec.Took >= q.Generation {
		// Whatever became of the domain here: a copy as old as that is outdated.
		answer.Role = wire.RoleRunning
		return answer, nil
	}
	found, err := r.Restorer.Find(q.Domain, q.UUID)
	switch {
	case err != nil:
		return wire.OwnerResult{}, fmt.Errorf("whether %s is here: %w", q.Domain, err)
	case found == FoundReplica:
		answer.Role = wire.RoleReplica
	case found == FoundNothing && q.Generation == 0 && rec.Took > 0:
		// It ran here once, and the asker does not know when its own copy is of.
		r.Log.Error("a host whose record is lost asks for a domain that ran here once: an operator has to say which copy is the newest",
			zap.String("domain", q.Domain), zap.String("peer", peer), zap.Uint64("took", rec.Took))
		answer.Role = wire.RoleReplica
	case found == FoundDomain:
		answer = wire.OwnerResult{Role: wire.RoleRunning, Generation: max(rec.Generation, q.Generation)}
		if rec.Role == xlft.HostBackup {
			// A takeover that could not be recorded.
			rec.Role, rec.Took = xlft.HostOwner, rec.Generation
			if err := r.Store.Save(q.Domain, rec); err != nil {
				r.Log.Error("record that a domain was taken over", zap.String("domain", q.Domain), zap.Error(err))
			}
		}
	}
	return answer, nil
}

// ownership returns what is known of a domain without a session. If an earlier
// receiver died during a takeover, whether the domain runs here is found out and
// recorded; while the restore worker is still completing the domain, the question
// stays open.
func (r *Receiver) ownership(domain string) (xlft.Ownership, error) {
	rec, err := r.Store.Load(domain)
	if err != nil || rec.Role != xlft.HostOwner || !rec.Pending {
		return rec, err
	}
	found, err := r.Restorer.Find(domain, rec.UUID)
	switch {
	case err != nil:
		return rec, fmt.Errorf("whether %s was taken over: %w", domain, err)
	case found == FoundReplica:
		return rec, nil
	case found == FoundNothing:
		rec.Role = xlft.HostFailed
	default:
		rec.Took = rec.Generation
	}
	rec.Pending = false
	r.Log.Warn("an earlier receiver ended during a takeover", zap.String("domain", domain), zap.Bool("runs", found == FoundDomain))
	if err := r.Store.Save(domain, rec); err != nil {
		r.Log.Error("record what became of a takeover", zap.String("domain", domain), zap.Error(err))
	}
	return rec, nil
}

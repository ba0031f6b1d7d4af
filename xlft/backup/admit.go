package backup

import (
	"context"
	"fmt"
	"time"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// admit decides on an offer, and reserves the domain's place.
func (r *Receiver) admit(ctx context.Context, o wire.Offer, peer string) (*session, *wire.Refusal) {
	no := func(code wire.Code, format string, args ...any) (*session, *wire.Refusal) {
		return nil, &wire.Refusal{Code: code, Reason: fmt.Sprintf(format, args...)}
	}
	if o.Domain == "" || o.FailureTimeout < minSilence || o.FailureTimeout > maxSilence {
		return no(wire.CodeProtocol, "offer without a name or a sane failure timeout")
	}
	if err := r.sameArbiter(ctx, o); err != nil {
		return no(wire.CodeDecider, "%v", err)
	}
	if o.MaxEpoch > r.EpochLimit {
		return no(wire.CodeUnfit, "checkpoints of up to %d bytes were announced, this host takes %d: see checkpoint_memory in both configs", o.MaxEpoch, r.EpochLimit)
	}
	wait, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
	defer cancel()
	r.awaitDestroyed(wait, o.Domain)
	// A replica of the same domain makes room for its primary's new session.
	if old := r.session(o.Domain); old != nil {
		if old.peer != peer {
			return no(wire.CodeBusy, "%s protects a domain of that name here", old.peer)
		}
		old.giveUp(wait, DestroyAsked{errReclaimed, true})
		switch old.settled(wait, true) {
		case Destroyed:
			old.wait(wait)
		case Running:
			return no(wire.CodeRunning, "this host took the domain over")
		default:
			return no(wire.CodeBusy, "its replica waits for the arbiter")
		}
	}
	if r.drained() {
		return nil, errDrained()
	}
	rec, err := r.ownership(o.Domain)
	if err != nil {
		return no(wire.CodeInternal, "%v", err)
	}
	switch found, err := r.Restorer.Find(o.Domain, o.UUID); {
	case err != nil:
		return no(wire.CodeInternal, "%v", err)
	case found == FoundDomain:
		r.conflict(o.Domain, peer)
		return no(wire.CodeRunning, "this host runs the domain; its newest generation here is %d", rec.Generation)
	case found == FoundReplica:
		return no(wire.CodeBusy, "a replica of an earlier session is still here")
	}
	again := rec.Role == xlft.HostBackup && rec.Peer == peer && rec.Generation == o.Generation
	if rec.Generation >= o.Generation && !again {
		// Generations of both hosts advance together: what was decided in one must
		// not be taken for the decision in another.
		_, newer := no(wire.CodeGeneration, "generation %d was given away here, or is newer", rec.Generation)
		newer.Generation = rec.Generation
		return nil, newer
	}
	if ps := r.Restorer.Check(ctx, o); len(ps) > 0 {
		return nil, &wire.Refusal{Code: wire.CodeUnfit, Reason: "this host can't take the domain", Problems: ps}
	}
	if rec.Pending {
		// Nobody could say whether the domain ran here. Whoever offers it in a newer
		// generation has decided; older copies may be outdated.
		rec.Took = rec.Generation
	}
	if rec.UUID != "" && !xlft.SameUUID(rec.UUID, o.UUID) {
		rec.Took = 0 // another domain's, which had the name
	}
	r.resolved(o.Domain)
	s := newSession(r, o, peer, rec)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopping:
		return no(wire.CodeStopping, "this host stops receiving")
	case r.sessionLocked(o.Domain) != nil:
		return no(wire.CodeBusy, "another session came first")
	case len(r.domains) >= maxReplicas:
		return no(wire.CodeBusy, "this host holds %d replicas already", maxReplicas)
	}
	r.domains[o.Domain] = s
	return s, nil
}

// sameArbiter says why two hosts could not decide alike; nil if they have the
// same arbiter.
func (r *Receiver) sameArbiter(ctx context.Context, o wire.Offer) error {
	ctx, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
	defer cancel()
	ours, err := xlft.ArbiterName(ctx, r.Arbiter)
	if err != nil {
		return err
	}
	if o.Arbiter != ours {
		return fmt.Errorf("the primary's arbiter is %q, this host's is %q: hosts that decide differently could both run the domain; set the same arbiter.type on both, and the same place where it keeps claims", o.Arbiter, ours)
	}
	return nil
}

// Bounds of a failure timeout that a peer may ask for.
const (
	minSilence = 50 * time.Millisecond
	maxSilence = 10 * time.Minute
)

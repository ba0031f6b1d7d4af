package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// errReclaimed: the primary came back and keeps the domain.
var errReclaimed = errors.New("the primary came back and keeps the domain")

// owner answers whether this host owns a domain. What it goes by, in this order:
// the session that there is; what this host ever took over; and what is really
// here. The answer comes in the asker's time, whatever hangs here: an asker without
// one would take this host for dead.
func (r *Receiver) owner(ctx context.Context, q wire.OwnerQuery, peer string) (wire.OwnerResult, error) {
	patience := wire.OwnerTimeout
	if q.Patience > 0 {
		patience = min(patience, q.Patience)
	}
	wait, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	// Only a side of the protection has a say in it.
	if s := r.session(q.Domain); s != nil && s.peer == peer {
		reclaim := q.Reclaim && !s.outdated(q)
		if reclaim {
			s.giveUp(wait, DestroyAsked{errReclaimed, true})
		}
		// A claim or a takeover that is under way decides first.
		st := s.settled(wait, reclaim)
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
	return r.lookWithin(wait, q, peer)
}

// outdated reports whether a question is of before this session: a primary records a
// session's generation before the backup can hold a checkpoint of it.
func (s *session) outdated(q wire.OwnerQuery) bool {
	return q.Generation != 0 && q.Generation < s.offer.Generation && s.now() != Syncing
}

// lookWithin is look, but records or a hypervisor that hang leave the question open.
// Each question looks anew: what an earlier one saw may not be so any more.
func (r *Receiver) lookWithin(wait context.Context, q wire.OwnerQuery, peer string) (wire.OwnerResult, error) {
	undecided := wire.OwnerResult{Role: wire.RoleReplica}
	over := make(chan struct{})
	for {
		r.mu.Lock()
		other := r.looks[q.Domain]
		if other == nil {
			if r.looks == nil {
				r.looks = map[string]chan struct{}{}
			}
			r.looks[q.Domain] = over
			r.mu.Unlock()
			break
		}
		r.mu.Unlock()
		select {
		case <-other:
		case <-wait.Done():
			return undecided, nil
		}
	}
	type answer struct {
		res wire.OwnerResult
		err error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() {
			r.mu.Lock()
			delete(r.looks, q.Domain)
			r.mu.Unlock()
			close(over)
		}()
		res, err := r.look(q, peer)
		r.note(q, peer, res, err)
		done <- answer{res, err}
	}()
	select {
	case a := <-done:
		r.said.Forget("look " + q.Domain)
		return a.res, a.err
	case <-wait.Done():
		if !r.said.New("look "+q.Domain, "hangs") {
			return undecided, nil
		}
		r.Log.Error("who owns a domain is not known in time: its record, or what runs here, can't be read", zap.String("domain", q.Domain), zap.String("peer", peer))
		return undecided, nil
	}
}

// look answers by the record, and by what is here.
func (r *Receiver) look(q wire.OwnerQuery, peer string) (wire.OwnerResult, error) {
	rec, err := r.ownership(q.Domain)
	if err != nil {
		// What runs is there for everybody to see; what ran, only the record says.
		switch found, ferr := r.Restorer.Find(q.Domain, q.UUID); {
		case ferr == nil && found == FoundDomain:
			return wire.OwnerResult{Role: wire.RoleRunning, Generation: q.Generation}, nil
		case ferr == nil && found == FoundReplica:
			return wire.OwnerResult{Role: wire.RoleReplica}, nil
		}
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
	case found == FoundNothing && rec.Pending && rec.Generation >= q.Generation:
		// It may have run here, for a moment: its clients may know of that.
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

// outcome looks what became of a takeover. Ran counts only if nothing is found.
func (r *Receiver) outcome(domain, uuid string) (found Found, ran Ran, err error) {
	if found, err = r.Restorer.Find(domain, uuid); err == nil && found == FoundNothing {
		ran, err = r.Restorer.Ran(domain, uuid)
	}
	return found, ran, err
}

// ownership returns what is known of a domain without a session. If an earlier
// receiver died during a takeover, whether the domain ran here is found out and
// recorded. The record stays pending while that is open: the restore worker is still
// completing the domain, or the host lost its power since.
func (r *Receiver) ownership(domain string) (xlft.Ownership, error) {
	rec, err := r.Store.Load(domain)
	if err != nil || rec.Role != xlft.HostOwner || !rec.Pending {
		return rec, err
	}
	if s := r.session(domain); s != nil && (s.now() == Claiming || s.now() == TakingOver) {
		return rec, nil // it is under way
	}
	found, ran, err := r.outcome(domain, rec.UUID)
	if err == nil && found == FoundReplica {
		r.limitWorker(domain)
		return rec, nil
	}
	r.forgetWorker(domain)
	switch {
	case err != nil:
		return rec, fmt.Errorf("whether %s was taken over: %w", domain, err)
	case found == FoundDomain || ran == RanOnce:
		rec.Took = rec.Generation
	case ran == RanNot:
		rec.Role = xlft.HostFailed
	default:
		if r.said.New("pending "+domain, "unknown") {
			r.Log.Error("this host lost its power during a takeover: the domain may have run here, so that no other copy of it is run. "+
				"\"xl ft-resolve\" on this host takes an operator's word on it",
				zap.String("domain", domain), zap.String("peer", rec.Peer))
		}
		return rec, nil
	}
	rec.Pending = false
	r.said.Forget("pending " + domain)
	r.Log.Warn("an earlier receiver ended during a takeover", zap.String("domain", domain), zap.Bool("runs", found == FoundDomain), zap.Bool("ran", rec.Role == xlft.HostOwner))
	if err := r.Store.Save(domain, rec); err != nil {
		r.Log.Error("record what became of a takeover", zap.String("domain", domain), zap.Error(err))
	}
	return rec, nil
}

// limitWorker ends the worker of an earlier receiver's takeover that takes longer than
// a takeover may. What became of it is looked at the next time.
func (r *Receiver) limitWorker(domain string) {
	now := time.Now()
	r.mu.Lock()
	since, ok := r.workers[domain]
	if !ok {
		if r.workers == nil {
			r.workers = map[string]time.Time{}
		}
		since = now
		r.workers[domain] = now
	}
	r.mu.Unlock()
	if now.Sub(since) < r.takeoverLimit() {
		return
	}
	r.Log.Error("the worker of an earlier receiver does not bring the domain up in time; it is ended", zap.String("domain", domain))
	r.forgetWorker(domain)
	if err := r.Restorer.Abandon(domain); err != nil {
		r.Log.Error("end a worker", zap.String("domain", domain), zap.Error(err))
	}
}

func (r *Receiver) forgetWorker(domain string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.workers, domain)
}

// suspected has this host look after a protector of which the domain's backup, and no
// other peer, hears nothing.
func (r *Receiver) suspected(ctx context.Context, domain, peer string) {
	r.mu.Lock()
	busy := r.suspects[domain]
	if !busy {
		if r.suspects == nil {
			r.suspects = map[string]bool{}
		}
		r.suspects[domain] = true
	}
	r.mu.Unlock()
	if busy {
		return
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.suspects, domain)
	}()
	if rec, err := r.Store.Load(domain); err == nil && rec.Role == xlft.HostPrimary && rec.Exposed && rec.Peer == peer {
		r.Suspected(ctx, domain)
	}
}

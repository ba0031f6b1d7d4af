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

// A question is one who owns a domain, that this host could not answer.
type question struct {
	q    wire.OwnerQuery
	peer string
	why  string
	at   time.Time // the first of those in a row
	last time.Time
}

// questionForgotten is how long after a question nobody counts as waiting for the
// answer any more: a primary in doubt asks all retry_delay.
const questionForgotten = 10 * time.Minute

// note remembers a question that this host could not answer, and forgets one that it
// could.
func (r *Receiver) note(q wire.OwnerQuery, peer string, res wire.OwnerResult, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && res.Role != wire.RoleReplica {
		delete(r.questions, q.Domain)
		return
	}
	was, ok := r.questions[q.Domain]
	now := question{q: q, peer: peer, at: was.at, last: time.Now()}
	if !ok || was.peer != peer || now.last.Sub(was.last) > questionForgotten {
		now.at = now.last
	}
	if err != nil {
		now.why = err.Error()
	}
	if r.questions == nil {
		r.questions = map[string]question{}
	}
	r.questions[q.Domain] = now
}

// asked returns the question about a domain that waits for an answer; false if none
// does.
func (r *Receiver) asked(domain string) (question, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q, ok := r.questions[domain]
	return q, ok && time.Since(q.last) <= questionForgotten
}

// told is an operator's word, and whether it was taken.
type told struct {
	Resolved
	taken  chan bool
	fields []zap.Field
}

// Decision returns what is known of a domain that waits for a decision here. The
// primary's host is asked, and nothing is changed by that.
func (r *Receiver) Decision(ctx context.Context, domain string) (xlft.Decision, error) {
	s := r.session(domain)
	if s == nil {
		d, _, err := r.openDecision(domain)
		return d, err
	}
	st := s.status()
	d := xlft.Decision{
		Domain: domain, Host: xlft.Backup, Peer: st.Peer, State: st.State.String(), Since: st.Since, Generation: st.Generation,
		Epoch: st.Epoch, LastAck: st.LastAck, Arbiter: st.Arbiter, Said: st.LastError,
	}
	for _, disk := range s.offer.Disks {
		d.Shared = d.Shared || disk.Shared
	}
	if st.State != Claiming {
		d.NotNow = fmt.Sprintf("its replica is %v", st.State)
		return d, nil
	}
	if r.Ask != nil {
		patience := min(2*s.offer.FailureTimeout, wire.OwnerTimeout)
		ask, cancel := wire.AwakeTimeout(ctx, patience)
		defer cancel()
		d.Answers = []xlft.Answer{xlft.AnswerOf(ask, s.peer, func(ctx context.Context) (wire.OwnerResult, error) {
			return r.Ask(ctx, s.peer, wire.OwnerQuery{Domain: domain, UUID: s.offer.UUID, Generation: s.offer.Generation, Patience: patience})
		})}
	}
	return d, nil
}

// openDecision is Decision, of a domain that this host has no replica of. Open: whether
// it ran here is not known, or what is known can't be read. The record is what is to be
// changed.
func (r *Receiver) openDecision(domain string) (d xlft.Decision, rec xlft.Ownership, err error) {
	rec, unread := r.ownership(domain)
	q, asked := r.asked(domain)
	d = xlft.Decision{
		Domain: domain, Host: xlft.Backup, Peer: rec.Peer, State: "no copy is here", Generation: rec.Generation,
		Arbiter: r.Arbiter.String(),
	}
	if asked {
		d.Since = q.at
	}
	switch {
	case unread != nil && asked:
		rec = xlft.Ownership{Generation: q.q.Generation, Peer: q.peer, UUID: q.q.UUID}
		d.Peer, d.Generation, d.Said = q.peer, q.q.Generation, unread.Error()
	case unread != nil:
		return d, rec, unread
	case rec.Role == xlft.HostOwner && rec.Pending:
		d.Said = "this host lost its power, or its worker, during a takeover: the domain may have run here"
	case asked && q.q.Generation == 0 && rec.Took > 0:
		d.Generation = 0
		d.Said = fmt.Sprintf("it ran here, in generation %d, and %s, whose record is lost, does not know of when its own copy is", rec.Took, q.peer)
	default:
		d.NotNow = "this host holds no copy of it, and no other host waits for this host's word"
		return d, rec, nil
	}
	switch found, err := r.Restorer.Find(domain, rec.UUID); {
	case err != nil:
		return d, rec, fmt.Errorf("whether %s is here: %w", domain, err)
	case found == FoundDomain:
		d.NotNow = "it is here, which every host that asks is told"
	case found == FoundReplica:
		d.NotNow = "the worker of an earlier receiver still completes it"
	default:
		d.Open = true
	}
	return d, rec, nil
}

// Resolve takes an operator's word on a domain that waits for a decision here; by names
// the operator. It returns what was known, when the word is in effect: the domain runs
// here, or the replica is gone. It is refused if nothing waits, or if the primary's host
// says otherwise.
func (r *Receiver) Resolve(ctx context.Context, domain string, w xlft.Word, by string) (xlft.Decision, error) {
	s := r.session(domain)
	if s == nil {
		return r.resolveOpen(domain, w, by)
	}
	d, err := r.Decision(ctx, domain)
	if err == nil {
		err = d.Refuses(w)
	}
	if err != nil {
		return d, err
	}
	word := told{Resolved{w.Here()}, make(chan bool, 1), []zap.Field{
		zap.String("word", string(w)), zap.String("by", by), zap.Uint64("generation", d.Generation), zap.Uint64("epoch", d.Epoch),
		zap.String("arbiter_said", d.Said), zap.Stringers("answers", d.Answers),
	}}
	s.ask(ctx, word)
	select {
	case taken := <-word.taken:
		if !taken {
			return d, fmt.Errorf("%s waits for no decision here any more (%v): the primary is heard again, or it was decided", domain, s.now())
		}
	case <-s.done:
		return d, fmt.Errorf("%s waits for no decision here any more (%v)", domain, s.now())
	case <-ctx.Done():
		return d, ctx.Err()
	}
	d.Word = w
	st := s.settled(ctx, false)
	d.State = st.String()
	switch {
	case ctx.Err() != nil:
		return d, ctx.Err()
	case w.Here() && st != Running:
		return d, fmt.Errorf("the takeover of %s failed: the log of the receiver has the reason", domain)
	case !w.Here() && st == Running:
		return d, fmt.Errorf("%s was not given up: the arbiter had given it to this host, which runs it", domain)
	}
	return d, nil
}

// errOpenRecord: an operator's word could not be recorded.
var errOpenRecord = errors.New("the word is not in effect")

// resolveOpen takes an operator's word on whether a domain ran here.
func (r *Receiver) resolveOpen(domain string, w xlft.Word, by string) (xlft.Decision, error) {
	d, rec, err := r.openDecision(domain)
	if err == nil {
		err = d.Refuses(w)
	}
	if err != nil {
		return d, err
	}
	rec.Pending = false
	switch w {
	case xlft.TakeOver:
		rec.Role, rec.Took = xlft.HostOwner, rec.Generation
	case xlft.GiveUp:
		rec.Role = xlft.HostFailed
		if d.Generation == 0 {
			rec.Took = 0
		}
	}
	if err := r.Store.Save(domain, rec); err != nil {
		return d, fmt.Errorf("%w: %w", errOpenRecord, err)
	}
	r.mu.Lock()
	delete(r.questions, domain)
	r.mu.Unlock()
	r.said.Forget("pending " + domain)
	r.Log.Warn("an operator's word decides whether the domain ran here", zap.String("domain", domain), zap.String("word", string(w)), zap.String("by", by),
		zap.String("peer", d.Peer), zap.Uint64("generation", rec.Generation), zap.String("was", d.Said))
	d.Word, d.State, d.Open = w, string(rec.Role), false
	return d, nil
}

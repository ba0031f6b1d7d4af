package backup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"xlft/xlft"
	"xlft/xlft/wire"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Limits of what peers can cost a Receiver before they are believed.
const (
	maxGreeting = 32               // connections that have not said HELLO yet
	maxReplicas = 256              // domains held for others
	joinTimeout = 15 * time.Second // from ACCEPT to the data connection
	acceptDelay = 20 * time.Millisecond
)

// A Receiver holds replicas of other hosts' domains, and runs one on when its
// primary is lost.
type Receiver struct {
	Software string
	Restorer Restorer
	Arbiter  xlft.Arbiter
	Store    xlft.Store
	Log      *zap.Logger
	// PeerName names the peer behind a connection, by its certificate.
	PeerName func(net.Conn) string
	// RetryDelay is the time before an unreachable arbiter is asked again.
	RetryDelay time.Duration
	// Disks has this host's copies of disks; nil if it keeps none.
	Disks DiskHost
	// EpochLimit is the largest checkpoint taken into memory here, in bytes.
	EpochLimit uint64
	// TakeoverLimit bounds a takeover, from the arbiter's word until the domain
	// runs; then the takeover has failed. 0: two minutes.
	TakeoverLimit time.Duration

	mu       sync.Mutex
	domains  map[string]*session // by domain
	sessions map[string]*session // by session id
	changed  func()              // called at every change of Replicas
	stopping bool
}

// errTakeoverHangs: the replica does not come to run.
var errTakeoverHangs = errors.New("the domain does not come to run in time")

func (r *Receiver) takeoverLimit() time.Duration {
	if r.TakeoverLimit > 0 {
		return r.TakeoverLimit
	}
	return 2 * time.Minute
}

// OnChange sets a function that is called at every change of Replicas.
func (r *Receiver) OnChange(f func()) { r.changed = f }

// Serve takes peers from l until ctx ends. Then it destroys the replicas that do
// not run yet, tells their primaries, and returns nil.
func (r *Receiver) Serve(ctx context.Context, l net.Listener) error {
	r.mu.Lock()
	r.domains, r.sessions = map[string]*session{}, map[string]*session{}
	r.mu.Unlock()
	defer context.AfterFunc(ctx, func() { l.Close() })()

	var wg sync.WaitGroup
	defer wg.Wait()
	defer r.stop()
	greeting := make(chan struct{}, maxGreeting)
	for failures := 0; ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("receive: %w", err)
		default:
			// Out of descriptors or memory, say: the replicas that are here need
			// neither.
			if failures++; failures == 1 {
				r.Log.Error("no connection can be taken now", zap.Error(err))
			}
			select {
			case <-time.After(min(time.Duration(failures)*acceptDelay, time.Second)):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case greeting <- struct{}{}:
		default:
			c.Close() // a flood: the legitimate peer calls again
			continue
		}
		wg.Go(func() {
			r.serve(ctx, c, sync.OnceFunc(func() { <-greeting }))
		})
	}
}

// serve handles one connection to its end.
func (r *Receiver) serve(ctx context.Context, raw net.Conn, greeted func()) {
	defer raw.Close()
	defer greeted()
	unwatch := context.AfterFunc(ctx, func() { raw.Close() })
	c := wire.NewConn(raw)
	h, err := wire.Welcome(c, r.Software, wire.GreetTimeout)
	if err != nil {
		r.Log.Warn("peer turned away", zap.Stringer("from", raw.RemoteAddr()), zap.Error(err))
		return
	}
	greeted()
	unwatch() // a session tells its primary before it closes
	peer := r.PeerName(raw)
	log := r.Log.With(zap.String("peer", peer))
	switch h.Kind {
	case wire.KindQuery:
		err = r.query(ctx, c, peer)
	case wire.KindControl:
		err = r.control(ctx, c, h.Session, peer)
	case wire.KindData:
		err = r.join(c, h.Session, peer)
	case wire.KindDisk:
		err = r.joinDisk(ctx, c, h.Session, peer)
	}
	if err != nil {
		log.Warn("peer's connection ended", zap.String("kind", string(h.Kind)), zap.Stringer("from", raw.RemoteAddr()), zap.Error(err))
	}
}

func refuse(c *wire.Conn, code wire.Code, problems []wire.Problem, err error) error {
	c.WriteJSON(wire.TypeRefuse, 0, wire.Refusal{Code: code, Reason: err.Error(), Problems: problems})
	return err
}

func (r *Receiver) query(ctx context.Context, c *wire.Conn, peer string) error {
	c.SetDeadline(time.Now().Add(wire.OfferTimeout))
	f, err := c.ReadFrame()
	if err != nil {
		return err
	}
	switch f.Type {
	case wire.TypeCheck:
		var o wire.Offer
		if err := f.JSON(&o); err != nil {
			return refuse(c, wire.CodeProtocol, nil, err)
		}
		r.awaitDestroyed(ctx, o.Domain)
		ps := r.Restorer.Check(ctx, o)
		if err := r.sameArbiter(o); err != nil {
			ps = append(ps, wire.Problem{What: err.Error(), Advice: "Set the same arbiter.type in both configurations."})
		}
		if a, ok := r.Arbiter.(xlft.ArbiterChecker); ok {
			if err := a.Check(ctx, peer); err != nil {
				ps = append(ps, wire.Problem{What: err.Error(), Advice: "Try the agent by hand, on the backup, with the options of its configuration: until it works, the backup could not take over."})
			}
		}
		if s := r.session(o.Domain); s != nil {
			p := wire.Problem{What: fmt.Sprintf("the backup holds a replica of %s already (%v)", o.Domain, s.now()), Advice: "Stop the protection that is there with \"xl ft-stop\" on its primary."}
			if s.isDestroying() {
				p = wire.Problem{What: fmt.Sprintf("the backup is still destroying its last replica of %s", o.Domain), Advice: "Try again in a moment."}
			}
			ps = append(ps, p)
		}
		return c.WriteJSON(wire.TypeCheckResult, 0, wire.CheckResult{Software: r.Software, Problems: ps})
	case wire.TypeOwner:
		var q wire.OwnerQuery
		if err := f.JSON(&q); err != nil {
			return refuse(c, wire.CodeProtocol, nil, err)
		}
		res, err := r.owner(ctx, q, peer)
		if err != nil {
			return refuse(c, wire.CodeInternal, nil, err)
		}
		return c.WriteJSON(wire.TypeOwnerResult, 0, res)
	}
	return refuse(c, wire.CodeProtocol, nil, fmt.Errorf("%w: %v", wire.ErrUnexpected, f.Type))
}

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
		wait, cancel := context.WithTimeout(ctx, wire.OwnerTimeout/2)
		defer cancel()
		switch s.settled(wait, q.Reclaim) {
		case Running:
			return wire.OwnerResult{Role: wire.RoleRunning, Generation: s.offer.Generation}, nil
		case Destroyed:
		default:
			return wire.OwnerResult{Role: wire.RoleReplica, Generation: s.offer.Generation}, nil
		}
	}
	rec, err := r.ownership(q.Domain)
	if err != nil {
		return wire.OwnerResult{}, err
	}
	if rec.UUID != "" && q.UUID != "" && rec.UUID != q.UUID {
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
	case found == FoundDomain:
		answer = wire.OwnerResult{Role: wire.RoleRunning, Generation: max(rec.Generation, q.Generation)}
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

// control is a session's control connection: an offer, then the session.
func (r *Receiver) control(ctx context.Context, c *wire.Conn, session, peer string) error {
	var o wire.Offer
	c.SetDeadline(time.Now().Add(wire.OfferTimeout))
	if err := c.Expect(wire.TypeOffer, &o); err != nil {
		return err
	}
	s, no := r.admit(ctx, o, peer)
	if no != nil {
		no.Reason = o.Domain + ": " + no.Reason
		c.WriteJSON(wire.TypeRefuse, 0, no)
		return no
	}
	s.conn, s.id = c, session
	r.mu.Lock()
	r.sessions[session] = s
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.sessions, session)
		if r.domains[o.Domain] == s {
			delete(r.domains, o.Domain)
		}
		r.mu.Unlock()
		r.notify()
	}()
	return s.run(ctx)
}

// admit decides on an offer, and reserves the domain's place.
func (r *Receiver) admit(ctx context.Context, o wire.Offer, peer string) (*session, *wire.Refusal) {
	no := func(code wire.Code, format string, args ...any) (*session, *wire.Refusal) {
		return nil, &wire.Refusal{Code: code, Reason: fmt.Sprintf(format, args...)}
	}
	if o.Domain == "" || o.FailureTimeout < minSilence || o.FailureTimeout > maxSilence {
		return no(wire.CodeProtocol, "offer without a name or a sane failure timeout")
	}
	if err := r.sameArbiter(o); err != nil {
		return no(wire.CodeDecider, "%v", err)
	}
	if o.MaxEpoch > r.EpochLimit {
		return no(wire.CodeUnfit, "checkpoints of up to %d bytes were announced, this host takes %d: see checkpoint_memory in both configs", o.MaxEpoch, r.EpochLimit)
	}
	r.awaitDestroyed(ctx, o.Domain)
	// A replica of the same domain makes room for its primary's new session.
	if old := r.session(o.Domain); old != nil {
		if old.peer != peer {
			return no(wire.CodeBusy, "%s protects a domain of that name here", old.peer)
		}
		old.ask(ctx, DestroyAsked{errReclaimed, true})
		wait, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
		defer cancel()
		switch old.settled(wait, true) {
		case Destroyed:
			old.wait(wait)
		case Running:
			return no(wire.CodeRunning, "this host took the domain over")
		default:
			return no(wire.CodeBusy, "its replica waits for the arbiter")
		}
	}
	rec, err := r.ownership(o.Domain)
	if err != nil {
		return no(wire.CodeInternal, "%v", err)
	}
	switch found, err := r.Restorer.Find(o.Domain, o.UUID); {
	case err != nil:
		return no(wire.CodeInternal, "%v", err)
	case found == FoundDomain:
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
	if rec.UUID != "" && rec.UUID != o.UUID {
		rec.Took = 0 // another domain's, which had the name
	}
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
// same kind of arbiter.
func (r *Receiver) sameArbiter(o wire.Offer) error {
	if ours := r.Arbiter.String(); o.Arbiter != ours {
		return fmt.Errorf("the primary's arbiter is %q, this host's is %q: hosts that decide differently could both run the domain; set the same arbiter.type on both", o.Arbiter, ours)
	}
	return nil
}

// Bounds of a failure timeout that a peer may ask for.
const (
	minSilence = 50 * time.Millisecond
	maxSilence = 10 * time.Minute
)

// sessionByID returns the session that a peer's connection belongs to.
func (r *Receiver) sessionByID(id, peer string) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sessions[id]; s != nil && s.peer == peer {
		return s
	}
	return nil
}

var errNoSession = errors.New("no such session")

// join hands a data connection to its session, and keeps it until the end.
func (r *Receiver) join(c *wire.Conn, session, peer string) error {
	s := r.sessionByID(session, peer)
	if s == nil || !s.hasData.CompareAndSwap(false, true) {
		return refuse(c, wire.CodeProtocol, nil, errNoSession)
	}
	s.data <- c
	<-s.done
	return nil
}

// joinDisk hands the connection of a disk to its session, and keeps the
// connection until the end.
func (r *Receiver) joinDisk(ctx context.Context, c *wire.Conn, session, peer string) error {
	s := r.sessionByID(session, peer)
	if s == nil {
		return refuse(c, wire.CodeProtocol, nil, errNoSession)
	}
	select {
	case <-s.accepted:
	case <-s.done:
		return refuse(c, wire.CodeProtocol, nil, errNoSession)
	}
	if ev := s.diskEnded(s.joinDisk(c)); ev != nil {
		s.ask(ctx, ev)
	}
	return nil
}

// session returns the domain's session, unless it has ended.
func (r *Receiver) session(domain string) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessionLocked(domain)
}

func (r *Receiver) sessionLocked(domain string) *session {
	s := r.domains[domain]
	if s == nil {
		return nil
	}
	select {
	case <-s.done:
		return nil
	default:
		return s
	}
}

// awaitDestroyed waits for a replica that is being destroyed. Its primary was
// told beforehand, and may be back for a new one.
func (r *Receiver) awaitDestroyed(ctx context.Context, domain string) {
	if s := r.session(domain); s != nil && s.isDestroying() {
		wait, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
		defer cancel()
		s.wait(wait)
	}
}

// stop destroys the replicas that do not run yet.
func (r *Receiver) stop() {
	r.mu.Lock()
	r.stopping = true
	all := make([]*session, 0, len(r.domains))
	for _, s := range r.domains {
		all = append(all, s)
	}
	r.mu.Unlock()
	var g errgroup.Group
	for _, s := range all {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
			defer cancel()
			s.ask(ctx, DestroyAsked{errStopping, false})
			s.wait(ctx)
			return nil
		})
	}
	g.Wait()
}

var errStopping = errors.New("the backup stops receiving")

var errRevoked = errors.New("the backup does not know this host by its certificate any more")

// Revoke ends the sessions of peers that are not to be trusted any more. A replica
// whose primary is lost already stays: it may be all that is left of the domain.
func (r *Receiver) Revoke(ctx context.Context, peers ...string) {
	r.mu.Lock()
	var ended []*session
	for _, s := range r.domains {
		if slices.Contains(peers, s.peer) {
			ended = append(ended, s)
		}
	}
	r.mu.Unlock()
	for _, s := range ended {
		s.ask(ctx, DestroyAsked{errRevoked, false})
	}
}

func (r *Receiver) notify() {
	if r.changed != nil {
		r.changed()
	}
}

// Status is what an operator sees of a replica.
type Status struct {
	Domain     string    `json:"domain"`
	Peer       string    `json:"peer"`
	Arbiter    string    `json:"arbiter"`
	State      State     `json:"state"`
	Epoch      uint64    `json:"epoch"` // newest whole one
	LastAck    time.Time `json:"last_ack"`
	Generation uint64    `json:"generation"`
	Bytes      uint64    `json:"bytes_received"`
}

// Replicas returns the replicas held, by name.
func (r *Receiver) Replicas() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Status, 0, len(r.domains))
	for _, s := range r.domains {
		all = append(all, s.status())
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Domain, b.Domain) })
	return all
}

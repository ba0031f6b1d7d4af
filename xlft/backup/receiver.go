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

	mu       sync.Mutex
	domains  map[string]*session // by domain
	sessions map[string]*session // by session id
	changed  func()              // called at every change of Replicas
	stopping bool
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
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			return fmt.Errorf("receive: %w", err)
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
		res, err := r.owner(ctx, q)
		if err != nil {
			return refuse(c, wire.CodeInternal, nil, err)
		}
		return c.WriteJSON(wire.TypeOwnerResult, 0, res)
	}
	return refuse(c, wire.CodeProtocol, nil, fmt.Errorf("%w: %v", wire.ErrUnexpected, f.Type))
}

// errReclaimed: the primary came back and keeps the domain.
var errReclaimed = errors.New("the primary came back and keeps the domain")

func (r *Receiver) owner(ctx context.Context, q wire.OwnerQuery) (wire.OwnerResult, error) {
	if s := r.session(q.Domain); s != nil {
		if q.Reclaim {
			s.ask(ctx, DestroyAsked{errReclaimed})
		}
		// A claim that is under way decides first.
		wait, cancel := context.WithTimeout(ctx, wire.OwnerTimeout/2)
		defer cancel()
		switch s.settled(wait, q.Reclaim) {
		case TakingOver, Running:
			return wire.OwnerResult{Role: wire.RoleRunning, Generation: s.offer.Generation}, nil
		case Destroyed:
		default:
			return wire.OwnerResult{Role: wire.RoleReplica, Generation: s.offer.Generation}, nil
		}
	}
	rec, err := r.ownership(q.Domain)
	switch {
	case err != nil:
		return wire.OwnerResult{}, err
	case rec.Role == xlft.HostOwner && rec.Handed:
		return wire.OwnerResult{Role: wire.RoleReplica, Generation: rec.Generation}, nil
	case rec.Role == xlft.HostOwner:
		return wire.OwnerResult{Role: wire.RoleRunning, Generation: rec.Generation}, nil
	}
	return wire.OwnerResult{Role: wire.RoleNone, Generation: rec.Generation}, nil
}

// ownership returns what is known of a domain without a session. If an earlier
// receiver died during a switch-over, whether the domain runs here is found out
// and recorded; while the restore worker is still completing the domain, the
// question stays open.
func (r *Receiver) ownership(domain string) (xlft.Ownership, error) {
	rec, err := r.Store.Load(domain)
	if err != nil || rec.Role != xlft.HostOwner || !rec.Handed {
		return rec, err
	}
	found, err := r.Restorer.Find(domain)
	switch {
	case err != nil:
		return rec, fmt.Errorf("whether %s was taken over: %w", domain, err)
	case found == FoundReplica:
		return rec, nil
	case found == FoundNothing:
		rec.Role = xlft.HostNone
	}
	rec.Handed = false
	r.Log.Warn("an earlier receiver died during a switch-over", zap.String("domain", domain), zap.Bool("runs", found == FoundDomain))
	return rec, r.Store.Save(domain, rec)
}

// control is a session's control connection: an offer, then the session.
func (r *Receiver) control(ctx context.Context, c *wire.Conn, session, peer string) error {
	var o wire.Offer
	c.SetDeadline(time.Now().Add(wire.OfferTimeout))
	if err := c.Expect(wire.TypeOffer, &o); err != nil {
		return err
	}
	s, code, problems, err := r.admit(ctx, o, peer)
	if err != nil {
		return refuse(c, code, problems, fmt.Errorf("%s: %w", o.Domain, err))
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
func (r *Receiver) admit(ctx context.Context, o wire.Offer, peer string) (*session, wire.Code, []wire.Problem, error) {
	if o.Domain == "" || o.FailureTimeout < minSilence || o.FailureTimeout > maxSilence {
		return nil, wire.CodeProtocol, nil, errors.New("offer without a name or a sane failure timeout")
	}
	if o.MaxEpoch > r.EpochLimit {
		return nil, wire.CodeUnfit, nil, fmt.Errorf("checkpoints of up to %d bytes were announced, this host takes %d: see checkpoint_memory in both configs", o.MaxEpoch, r.EpochLimit)
	}
	r.awaitDestroyed(ctx, o.Domain)
	// A replica of the same domain makes room for its primary's new session.
	if old := r.session(o.Domain); old != nil {
		if old.peer != peer {
			return nil, wire.CodeBusy, nil, fmt.Errorf("%s protects a domain of that name here", old.peer)
		}
		old.ask(ctx, DestroyAsked{errReclaimed})
		wait, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
		defer cancel()
		switch old.settled(wait, true) {
		case Destroyed:
			old.wait(wait)
		case TakingOver, Running:
			return nil, wire.CodeRunning, nil, errors.New("this host took the domain over")
		default:
			return nil, wire.CodeBusy, nil, errors.New("its replica waits for the arbiter")
		}
	}
	rec, err := r.ownership(o.Domain)
	if err != nil {
		return nil, wire.CodeInternal, nil, err
	}
	if rec.Role == xlft.HostOwner && rec.Generation >= o.Generation {
		return nil, wire.CodeRunning, nil, fmt.Errorf("this host took the domain over in generation %d", rec.Generation)
	}
	if ps := r.Restorer.Check(ctx, o); len(ps) > 0 {
		return nil, wire.CodeUnfit, ps, errors.New("this host can't take the domain")
	}
	s := newSession(r, o, peer)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopping:
		return nil, wire.CodeStopping, nil, errors.New("this host stops receiving")
	case r.sessionLocked(o.Domain) != nil:
		return nil, wire.CodeBusy, nil, errors.New("another session came first")
	case len(r.domains) >= maxReplicas:
		return nil, wire.CodeBusy, nil, fmt.Errorf("this host holds %d replicas already", maxReplicas)
	}
	r.domains[o.Domain] = s
	return s, "", nil, nil
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
			s.ask(ctx, DestroyAsked{errStopping})
			s.wait(ctx)
			return nil
		})
	}
	g.Wait()
}

var errStopping = errors.New("the backup stops receiving")

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

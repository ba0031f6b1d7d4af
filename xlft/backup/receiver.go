package backup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
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
	maxStandby  = 256              // domains held for others
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
	standbys map[string]*standby // by domain
	sessions map[string]*standby // by session id
	changed  func()              // told of every change of the standbys
	stopping bool
}

// OnChange sets a function that is told of every change in Standbys.
func (r *Receiver) OnChange(f func()) { r.changed = f }

// Serve takes peers from l until ctx ends. Then it drops the replicas that do
// not run yet, tells their primaries, and returns nil.
func (r *Receiver) Serve(ctx context.Context, l net.Listener) error {
	r.mu.Lock()
	r.standbys, r.sessions = map[string]*standby{}, map[string]*standby{}
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
	unwatch() // a session says farewell before it closes
	peer := r.PeerName(raw)
	log := r.Log.With(zap.String("peer", peer))
	switch h.Kind {
	case wire.Query:
		err = r.query(ctx, c, peer)
	case wire.Control:
		err = r.control(ctx, c, h.Session, peer)
	case wire.Data:
		err = r.join(c, h.Session, peer)
	case wire.DiskKind:
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
		r.awaitLeaving(ctx, o.Domain)
		ps := r.Restorer.Check(ctx, o)
		if a, ok := r.Arbiter.(xlft.ArbiterChecker); ok {
			if err := a.Check(ctx, peer); err != nil {
				ps = append(ps, wire.Problem{What: "backup: " + err.Error(), Advice: "Try the agent by hand, on the backup, with the options of its configuration: until it works, the backup could not take over."})
			}
		}
		if s := r.standby(o.Domain); s != nil {
			p := wire.Problem{What: fmt.Sprintf("the backup holds a replica of %s already (%v)", o.Domain, s.state()), Advice: "Stop the protection that is there with \"xl ft-stop\" on its primary."}
			if s.isLeaving() {
				p = wire.Problem{What: fmt.Sprintf("the backup is still destroying the replica of %s that it had", o.Domain), Advice: "Try again in a moment."}
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
	if s := r.standby(q.Domain); s != nil {
		if q.Reclaim {
			s.ask(ctx, DropAsked{errReclaimed})
		}
		// A claim that is under way decides first.
		wait, cancel := context.WithTimeout(ctx, wire.OwnerTimeout/2)
		defer cancel()
		switch s.settled(wait, q.Reclaim) {
		case TakingOver, Running:
			return wire.OwnerResult{Role: wire.RoleRunning, Generation: s.offer.Generation}, nil
		case Gone:
		default:
			return wire.OwnerResult{Role: wire.RoleReplica, Generation: s.offer.Generation}, nil
		}
	}
	rec, err := r.record(q.Domain)
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

// record returns what is known of a domain without a standby. A receiver that
// died in a switch-over left it open whether the domain runs here: that is found
// out. While its worker is at it, it stays open.
func (r *Receiver) record(domain string) (xlft.Record, error) {
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
	r.Log.Warn("a switch-over that a receiver before this one did not come to the end of", zap.String("domain", domain), zap.Bool("done", found == FoundDomain))
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
	s.control, s.session = c, session
	r.mu.Lock()
	r.sessions[session] = s
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.sessions, session)
		if r.standbys[o.Domain] == s {
			delete(r.standbys, o.Domain)
		}
		r.mu.Unlock()
		r.notify()
	}()
	return s.run(ctx)
}

// admit decides on an offer, and reserves the domain's place.
func (r *Receiver) admit(ctx context.Context, o wire.Offer, peer string) (*standby, wire.Code, []wire.Problem, error) {
	if o.Domain == "" || o.FailureTimeout < minSilence || o.FailureTimeout > maxSilence {
		return nil, wire.CodeProtocol, nil, errors.New("offer without a name or a sane failure timeout")
	}
	if o.MaxEpoch > r.EpochLimit {
		return nil, wire.CodeUnfit, nil, fmt.Errorf("checkpoints of up to %d bytes were announced, this host takes %d: see checkpoint_memory in both configs", o.MaxEpoch, r.EpochLimit)
	}
	r.awaitLeaving(ctx, o.Domain)
	// A replica of the same domain makes room for its primary's new session.
	if old := r.standby(o.Domain); old != nil {
		if old.peer != peer {
			return nil, wire.CodeBusy, nil, fmt.Errorf("%s protects a domain of that name here", old.peer)
		}
		old.ask(ctx, DropAsked{errReclaimed})
		wait, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
		defer cancel()
		switch old.settled(wait, true) {
		case Gone:
			old.wait(wait)
		case TakingOver, Running:
			return nil, wire.CodeRunning, nil, errors.New("this host took the domain over")
		default:
			return nil, wire.CodeBusy, nil, errors.New("its replica waits for the arbiter")
		}
	}
	rec, err := r.record(o.Domain)
	if err != nil {
		return nil, wire.CodeInternal, nil, err
	}
	if rec.Role == xlft.HostOwner && rec.Generation >= o.Generation {
		return nil, wire.CodeRunning, nil, fmt.Errorf("this host took the domain over in generation %d", rec.Generation)
	}
	if ps := r.Restorer.Check(ctx, o); len(ps) > 0 {
		return nil, wire.CodeUnfit, ps, errors.New("this host can't take the domain")
	}
	s := newStandby(r, o, peer)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopping:
		return nil, wire.CodeStopping, nil, errors.New("this host stops receiving")
	case r.standbyLocked(o.Domain) != nil:
		return nil, wire.CodeBusy, nil, errors.New("another session came first")
	case len(r.standbys) >= maxStandby:
		return nil, wire.CodeBusy, nil, fmt.Errorf("this host holds %d replicas already", maxStandby)
	}
	r.standbys[o.Domain] = s
	return s, "", nil, nil
}

// Bounds of a failure timeout that a peer may ask for.
const (
	minSilence = 50 * time.Millisecond
	maxSilence = 10 * time.Minute
)

// session returns the standby that a peer's connection belongs to.
func (r *Receiver) session(id, peer string) *standby {
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
	s := r.session(session, peer)
	if s == nil || !s.hasData.CompareAndSwap(false, true) {
		return refuse(c, wire.CodeProtocol, nil, errNoSession)
	}
	s.data <- c
	<-s.done
	return nil
}

// joinDisk does the same for the connection of a disk.
func (r *Receiver) joinDisk(ctx context.Context, c *wire.Conn, session, peer string) error {
	s := r.session(session, peer)
	if s == nil {
		return refuse(c, wire.CodeProtocol, nil, errNoSession)
	}
	select {
	case <-s.accepted:
	case <-s.done:
		return refuse(c, wire.CodeProtocol, nil, errNoSession)
	}
	if ev := s.diskOver(s.joinDisk(c)); ev != nil {
		s.ask(ctx, ev)
	}
	return nil
}

// standby returns the domain's, unless its end is over.
func (r *Receiver) standby(domain string) *standby {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.standbyLocked(domain)
}

func (r *Receiver) standbyLocked(domain string) *standby {
	s := r.standbys[domain]
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

// awaitLeaving waits for a replica that is being destroyed. Its primary was
// told before that, and may be back for a new one.
func (r *Receiver) awaitLeaving(ctx context.Context, domain string) {
	if s := r.standby(domain); s != nil && s.isLeaving() {
		wait, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
		defer cancel()
		s.wait(wait)
	}
}

// stop drops what does not run yet.
func (r *Receiver) stop() {
	r.mu.Lock()
	r.stopping = true
	all := make([]*standby, 0, len(r.standbys))
	for _, s := range r.standbys {
		all = append(all, s)
	}
	r.mu.Unlock()
	var g errgroup.Group
	for _, s := range all {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
			defer cancel()
			s.ask(ctx, DropAsked{errStopping})
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

// StandbyStatus is what an operator sees of a replica.
type StandbyStatus struct {
	Domain     string    `json:"domain"`
	Peer       string    `json:"peer"`
	Arbiter    string    `json:"arbiter"`
	State      string    `json:"state"`
	Epoch      uint64    `json:"epoch"` // newest whole one
	LastAck    time.Time `json:"last_ack"`
	Generation uint64    `json:"generation"`
	Bytes      uint64    `json:"bytes_received"`
}

// Standbys returns the replicas held, by name.
func (r *Receiver) Standbys() []StandbyStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]StandbyStatus, 0, len(r.standbys))
	for _, s := range r.standbys {
		all = append(all, s.Status())
	}
	slices.SortFunc(all, func(a, b StandbyStatus) int {
		if a.Domain < b.Domain {
			return -1
		}
		return 1
	})
	return all
}

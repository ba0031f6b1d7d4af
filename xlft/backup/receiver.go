package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	maxReplicas = 256              // domains held for others
	joinTimeout = 15 * time.Second // from ACCEPT to the data connection
	acceptDelay = 20 * time.Millisecond
	stopTimeout = 50 * time.Second // for what is under way when the receiver stops; less than TimeoutStopSec
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
	// Ask asks another host about a domain; nil if none can be asked.
	Ask func(ctx context.Context, peer string, q wire.OwnerQuery) (wire.OwnerResult, error)
	// List, if set, says what this host knows of domains, for peers that ask.
	List func(ctx context.Context) (wire.ListResult, error)
	// Suspected, if set, is called when a domain's backup hears nothing of its protector on
	// this host, which is alone in that.
	Suspected func(ctx context.Context, domain string)
	// Drained, if set, reports whether an operator wants no replicas here.
	Drained func() bool
	// Health, if set, says whether this host's arbiter could decide against a peer now.
	Health func(peer string) xlft.Health
	// RetryDelay is the time before an unreachable arbiter is asked again.
	RetryDelay time.Duration
	// Disks has this host's copies of disks; nil if it keeps none.
	Disks DiskHost
	// EpochLimit is the largest checkpoint taken into memory here, in bytes.
	EpochLimit uint64
	// PageCache is how many bytes of pages each session keeps at most, for what changes of
	// them to be sent; 0: whole pages are sent.
	PageCache int64
	// TakeoverLimit bounds a takeover, from the arbiter's word until the domain
	// runs; then the takeover has failed. 0: two minutes.
	TakeoverLimit time.Duration

	mu       sync.Mutex
	domains  map[string]*session // by domain
	sessions map[string]*session // by session id
	changed  func()              // called at every change of Replicas
	stopping bool

	conflicts map[string]Conflict      // by domain
	looks     map[string]chan struct{} // by domain: closed when the look is over that a question needs
	workers   map[string]time.Time     // by domain: since when an earlier receiver's worker is known
	suspects  map[string]bool          // by domain: Suspected is being called
	questions map[string]question      // by domain: the newest that this host could not answer
	said      xlft.Said
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
	greeting := &greeters{log: sparing(r.Log)}
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
		greeted := greeting.add(c)
		wg.Go(func() { r.serve(ctx, c, greeting, greeted) })
	}
}

// serve handles one connection to its end.
func (r *Receiver) serve(ctx context.Context, raw net.Conn, greeting *greeters, greeted func()) {
	defer raw.Close()
	defer greeted()
	unwatch := context.AfterFunc(ctx, func() { raw.Close() })
	c := wire.NewConn(raw)
	h, err := wire.Welcome(c, r.Software, r.PageCache, wire.GreetTimeout)
	if err != nil && errors.Is(err, io.EOF) && r.PeerName(raw) != "" {
		return // it came by two paths at once, and has no use for this one
	}
	if err != nil {
		greeting.log.Warn("peer turned away", zap.Stringer("from", raw.RemoteAddr()), zap.Error(err))
		return
	}
	greeted()
	unwatch() // a session tells its primary before it closes
	peer := r.PeerName(raw)
	if peer == "" {
		refuse(c, wire.CodeProtocol, nil, errRevoked)
		return
	}
	greeting.know(raw.RemoteAddr())
	log := r.Log.With(zap.String("peer", peer))
	switch h.Kind {
	case wire.KindQuery:
		err = r.query(ctx, c, peer)
	case wire.KindControl:
		err = r.control(ctx, c, h.Session, peer)
	case wire.KindData:
		err = r.join(c, h, peer)
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
	if err == io.EOF {
		return nil // it wanted to know only whether somebody is here
	}
	if err != nil {
		return err
	}
	switch f.Type {
	case wire.TypeCheck:
		var o wire.Offer
		if err := f.JSON(&o); err != nil {
			return refuse(c, wire.CodeProtocol, nil, err)
		}
		wait, cancel := context.WithTimeout(ctx, wire.OfferTimeout/2)
		defer cancel()
		r.awaitDestroyed(wait, o.Domain)
		ps := r.Restorer.Check(ctx, o)
		if err := r.sameArbiter(ctx, o); err != nil {
			ps = append(ps, wire.Problem{What: err.Error(), Advice: "Set the same arbiter in both configurations."})
		}
		if a, ok := r.Arbiter.(xlft.ArbiterChecker); ok {
			if err := a.Check(ctx, peer); err != nil {
				ps = append(ps, wire.Problem{What: err.Error(), Advice: xlft.ArbiterAdvice(r.Arbiter)})
			}
		}
		if r.drained() {
			ps = append(ps, wire.Problem{What: "the host is drained: it takes no replicas", Advice: "\"xl ft-undrain\" there, when its maintenance is over."})
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
		if q.Suspect && r.Suspected != nil {
			go r.suspected(context.WithoutCancel(ctx), q.Domain, peer)
		}
		res, err := r.owner(ctx, q, peer)
		if err != nil {
			return refuse(c, wire.CodeInternal, nil, err)
		}
		if r.Health != nil {
			res.Arbiter = r.Health(peer).Error
		}
		return c.WriteJSON(wire.TypeOwnerResult, 0, res)
	case wire.TypeList:
		if r.List == nil {
			break
		}
		list, err := r.List(ctx)
		if err == nil {
			err = c.WriteJSON(wire.TypeListResult, 0, list)
		}
		if err != nil {
			return refuse(c, wire.CodeInternal, nil, err)
		}
		return nil
	}
	return refuse(c, wire.CodeProtocol, nil, fmt.Errorf("%w: %v", wire.ErrUnexpected, f.Type))
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
	// Its certificate was taken out of the configuration meanwhile, or this host was
	// drained, and Revoke or Evict did not know this session yet.
	switch {
	case r.PeerName(c.Conn) != peer:
		no = &wire.Refusal{Code: wire.CodeProtocol, Reason: errRevoked.Error()}
	case r.drained():
		no = errDrained()
	}
	if no != nil {
		r.mu.Lock()
		delete(r.domains, o.Domain)
		r.mu.Unlock()
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
func (r *Receiver) join(c *wire.Conn, h wire.Hello, peer string) error {
	s := r.sessionByID(h.Session, peer)
	if s == nil || !s.hasData.CompareAndSwap(false, true) {
		return refuse(c, wire.CodeProtocol, nil, errNoSession)
	}
	s.data <- newInput(c, h)
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
func (r *Receiver) awaitDestroyed(wait context.Context, domain string) {
	if s := r.session(domain); s != nil && s.isDestroying() {
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
			ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
			defer cancel()
			s.giveUp(ctx, DestroyAsked{errStopping, false})
			s.wait(ctx)
			if st := s.now(); st == Claiming || st == TakingOver {
				r.Log.Error("this receiver ends with a replica whose primary is lost: it may have been all that was left of the domain",
					zap.String("domain", s.offer.Domain), zap.Stringer("state", st))
			}
			return nil
		})
	}
	g.Wait()
}

var errStopping = errors.New("the backup stops receiving")

var errRevoked = errors.New("the backup does not know this host by its certificate any more")

// revokeLimit is how long Revoke and Evict wait for sessions that are busy.
const revokeLimit = 5 * time.Second

// Revoke ends the sessions of peers that are not to be trusted any more. A replica
// whose primary is lost already stays: it may be all that is left of the domain. A
// session that is busy for longer than Revoke waits ends when it gets to it.
func (r *Receiver) Revoke(ctx context.Context, peers ...string) {
	r.end(ctx, errRevoked, func(s *session) bool { return slices.Contains(peers, s.peer) })
}

// errDrained says that an operator wants no replicas here. Each caller has its own, whose
// reason it may change.
func errDrained() *wire.Refusal {
	return &wire.Refusal{Code: wire.CodeDrained, Reason: "this host is drained: it takes no replicas until \"xl ft-undrain\" there"}
}

func (r *Receiver) drained() bool { return r.Drained != nil && r.Drained() }

// Evict ends all sessions, as Revoke does, for a host that is drained.
func (r *Receiver) Evict(ctx context.Context) {
	r.end(ctx, errDrained(), func(*session) bool { return true })
}

func (r *Receiver) end(ctx context.Context, why error, which func(*session) bool) {
	r.mu.Lock()
	var ended []*session
	for _, s := range r.domains {
		if which(s) {
			ended = append(ended, s)
		}
	}
	r.mu.Unlock()
	var all sync.WaitGroup
	for _, s := range ended {
		all.Go(func() { s.giveUp(ctx, DestroyAsked{why, false}) })
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	limit := time.NewTimer(revokeLimit)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		r.Log.Warn("sessions that are to end are busy, and end later", zap.Error(why))
	}
}

func (r *Receiver) notify() {
	if r.changed != nil {
		r.changed()
	}
}

// Status is what an operator sees of a replica.
type Status struct {
	Domain  string `json:"domain"`
	Peer    string `json:"peer"`
	Arbiter string `json:"arbiter"`
	// Health is whether this host's arbiter could decide now.
	Health xlft.Health `json:"arbiter_health,omitzero"`
	State  State       `json:"state"`
	Since  time.Time   `json:"since"`
	Epoch  uint64      `json:"epoch"` // newest whole one
	// Restored is the newest one that the restore has taken, and RestoreMedian what one
	// takes it: no more checkpoints in a second can be acknowledged.
	Restored      uint64        `json:"restored_epoch"`
	RestoreMedian time.Duration `json:"restore_median_ns"`
	LastAck       time.Time     `json:"last_ack"`
	Generation    uint64        `json:"generation"`
	Bytes         uint64        `json:"bytes_received"`
	PageCache     int64         `json:"page_cache_bytes"`     // kept of pages that were received
	LastError     string        `json:"last_error,omitempty"` // why the domain is still claimed
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

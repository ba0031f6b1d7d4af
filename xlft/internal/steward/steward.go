// Package steward keeps those domains protected that are to be: a domain that comes to
// run on this host, whoever started it, and one that lost its protection, gets a
// protector, to the first of its backups that can take it.
//
// The one rule a caller must know: a Steward decides nothing about who runs a domain.
// It starts protectors, as an operator does with "xl ft-start", and these find out.
package steward

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
)

// A Domain is one that runs on this host.
type Domain struct {
	Name     string
	Instance string // tells this run of the domain from any other
}

// A Plan is what the configuration says of a domain.
type Plan struct {
	Protect bool
	Backups []string // in the order in which they are tried
}

// A Host is what a Steward looks at, and what it does. Its methods may be called by
// several goroutines.
type Host interface {
	// Domains lists those that run here and may be protected: no half-built ones, and
	// none of which it is not recorded yet that they run here.
	Domains() ([]Domain, error)
	// Busy reports whether a domain has a protector, or one is being started.
	Busy(ctx context.Context, domain string) (bool, error)
	// Stopped reports whether an operator ended the protection of this run of a domain, and
	// until when; the zero time is for good.
	Stopped(d Domain) (stopped bool, until time.Time)
	// Try starts a protector to a backup, after a look whether that can take the domain.
	// It returns nil when the domain is protected, however long that takes.
	Try(ctx context.Context, domain, backup string) error
	// Why says how the last protector of a domain ended; "" if that is not known.
	Why(domain string) string
}

// Status is what a Steward knows of a domain that is to be protected, and has no
// protector.
type Status struct {
	Domain  string    `json:"domain"`
	Since   time.Time `json:"since"`             // seen unprotected
	Stopped bool      `json:"stopped,omitempty"` // by an operator
	Until   time.Time `json:"until,omitzero"`    // when that ends by itself
	Trying  string    `json:"trying,omitempty"`  // a backup
	Next    time.Time `json:"next,omitzero"`     // when it is tried again
	Why     string    `json:"why,omitempty"`     // it is not protected
}

// A Steward keeps domains protected. The fields are set before Run.
type Steward struct {
	Host Host
	Plan func(domain string) Plan // as the configuration is now
	Log  *zap.Logger

	blind bool // the last look saw nothing; of the goroutine that calls Look alone

	mu  sync.Mutex
	all map[string]*charge
	wg  sync.WaitGroup
}

// A charge is a domain that is to be protected.
type charge struct {
	Domain
	since   time.Time // seen without a protector; zero: it has one
	looks   int       // in a row in which it had none
	stopped bool
	until   time.Time
	trying  string // the backup that is tried
	rounds  int    // in which no backup took it
	next    time.Time
	why     string
	said    xlft.Said
}

const (
	// Every is the time between two looks.
	Every = time.Second
	// looksFirst is how many looks in a row have to find a domain without a protector.
	// A protector that died comes back by itself, and a domain that is being created
	// is not whole at once.
	looksFirst = 3

	firstRest   = 5 * time.Second
	longestRest = time.Minute
)

// Run looks after all domains until ctx ends.
func (s *Steward) Run(ctx context.Context) {
	t := time.NewTicker(Every)
	defer t.Stop()
	defer s.wg.Wait()
	for {
		s.Look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Look looks once at all domains, and begins what there is to do. Nothing that it asks the
// host is asked under the lock: a host that does not answer keeps nobody from Unprotected.
func (s *Steward) Look(ctx context.Context) {
	here, err := s.Host.Domains()
	if err != nil {
		if !s.blind {
			s.Log.Warn("which domains run here can't be told: those that lose their protection meanwhile wait", zap.Error(err))
		}
		s.blind = true
		return
	}
	s.blind = false
	for _, c := range s.charges(here) {
		s.look(ctx, c)
	}
}

// charges takes up the domains that are to be protected, forgets those that are gone, and
// returns those that nothing is being done for.
func (s *Steward) charges(here []Domain) (idle []*charge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]*charge{}
	}
	seen := map[string]bool{}
	for _, d := range here {
		if !s.Plan(d.Name).Protect {
			continue
		}
		seen[d.Name] = true
		c := s.all[d.Name]
		if c == nil || c.Instance != d.Instance && c.trying == "" {
			c = &charge{Domain: d}
			s.all[d.Name] = c
		}
		if c.trying == "" {
			idle = append(idle, c)
		}
	}
	for name, c := range s.all {
		if !seen[name] && c.trying == "" {
			delete(s.all, name)
		}
	}
	return idle
}

// look looks at a domain that nothing is being done for.
func (s *Steward) look(ctx context.Context, c *charge) {
	busy, err := s.Host.Busy(ctx, c.Name)
	if err != nil {
		if c.said.New("busy", err.Error()) {
			s.Log.Warn("whether the domain has a protector can't be told", zap.String("domain", c.Name), zap.Error(err))
		}
		return
	}
	stopped, until, why := false, time.Time{}, ""
	if !busy {
		stopped, until = s.Host.Stopped(c.Domain)
		why = s.Host.Why(c.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.stopped, c.until = stopped, until; busy {
		c.since, c.looks = time.Time{}, 0
		return
	}
	now := time.Now()
	if c.looks++; c.looks == 1 {
		c.since = now
		if c.rounds == 0 {
			c.why = why
		}
	}
	backups := slices.Clone(s.Plan(c.Name).Backups)
	if c.looks < looksFirst || c.stopped || now.Before(c.next) || len(backups) == 0 {
		return
	}
	c.trying = backups[0]
	if c.looks == looksFirst {
		s.Log.Info("the domain is to be protected, and is not", zap.String("domain", c.Name), zap.Strings("backups", backups), zap.String("last", c.why))
	}
	s.wg.Go(func() { s.try(ctx, c, backups) })
}

// try tries each backup once, until one takes the domain or an operator does not want that
// any more.
func (s *Steward) try(ctx context.Context, c *charge, backups []string) {
	var errs []error
	for i, b := range backups {
		if i > 0 {
			if stopped, _ := s.Host.Stopped(c.Domain); stopped || ctx.Err() != nil {
				break
			}
		}
		s.mu.Lock()
		c.trying = b
		s.mu.Unlock()
		err := s.Host.Try(ctx, c.Name, b)
		if err == nil {
			errs = nil
			break
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.trying = ""
	if err == nil {
		c.rounds, c.next = 0, time.Time{}
		c.said.Forget("try")
		return
	}
	c.why = err.Error()
	c.next = time.Now().Add(min(firstRest<<min(c.rounds, 8), longestRest))
	c.rounds++
	if ctx.Err() == nil && c.said.New("try", c.why) {
		s.Log.Error("no backup takes the domain now; they are tried again", zap.String("domain", c.Name), zap.Error(err))
	}
}

// Unprotected lists the domains that are to be protected and have no protector.
func (s *Steward) Unprotected() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []Status{}
	for _, c := range s.all {
		if c.looks < looksFirst && c.trying == "" {
			continue
		}
		st := Status{Domain: c.Name, Since: c.since, Stopped: c.stopped, Until: c.until, Trying: c.trying, Why: c.why}
		if c.trying == "" && !c.stopped {
			st.Next = c.next
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.Domain, b.Domain) })
	return list
}

// Package overview collects what this host knows of protected domains, from the
// running daemons and, for domains without a daemon, from the records.
//
// The one rule a caller must know: a domain is Protected only if a running
// daemon says so; a record never does.
package overview

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/paths"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/steward"
	"xlft/xlft/internal/store"
	"xlft/xlft/primary"
)

// A Row is what one host knows of a domain. docs/operation.md says what each
// State means.
type Row struct {
	Domain    string `json:"domain"`
	Role      Role   `json:"role"`
	Peer      string `json:"peer"`
	State     string `json:"state"`
	Protected bool   `json:"protected"`
	// NoArbiter says why nobody could decide if a host or the network failed now.
	NoArbiter  string `json:"no_arbiter,omitempty"`
	Epoch      uint64 `json:"epoch"`
	Generation uint64 `json:"generation"`
	// Unprotected says why a domain that is to be protected (protect = true) is not.
	Unprotected *steward.Status `json:"unprotected,omitempty"`
	// Paths are the ways to the peer, if it has several addresses.
	Paths   []paths.Path    `json:"paths,omitempty"`
	Primary *primary.Status `json:"primary,omitempty"`
	Backup  *backup.Status  `json:"backup,omitempty"`
}

// Role is what this host is to a domain.
type Role string

const (
	None    Role = "none"    // nothing is known of the domain
	Primary Role = "primary" // protects it
	Backup  Role = "backup"  // holds a replica
	Owner   Role = "owner"   // took it over
	Yielded Role = "yielded" // gave it up to the peer
)

// States of domains without a daemon.
const (
	TookOver      = "took-over"       // the domain runs here
	TakingOver    = "taking-over"     // is completed here, or a receiver died during a takeover
	Failed        = "takeover-failed" // this host won the domain, and could not run it
	SplitBrain    = "split-brain"     // both hosts run the domain
	Unresponsive  = "unresponsive"    // its daemon does not answer: stopped, or hung
	StartingAgain = "starting-again"  // it has ended, and its keeper starts it again
	Unreadable    = "unreadable"      // its record can't be read
	GivenUp       = "given-up"        // the peer runs the domain
	ProtectorDead = "protector-dead"  // the output stays held until a protector runs again
	Unprotected   = "unprotected"     // it is to be protected, and is not: it is tried again
	StoppedHere   = "stopped"         // as before, but an operator ended its protection
)

// Rows returns what this host knows, by domain. It asks each daemon behind a
// socket in runDir and reads the records in stateDir.
func Rows(ctx context.Context, runDir, stateDir string) ([]Row, error) {
	seen := map[string]Row{}
	names, err := control.Names(runDir)
	if err != nil {
		return nil, err
	}
	// All are asked at once, and none for long: one daemon that hangs hides nothing
	// of the others.
	ask, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, n := range names {
		wg.Go(func() {
			r, ok := asked(ask, runDir, n)
			mu.Lock()
			defer mu.Unlock()
			if ok {
				seen[n] = r
			}
		})
	}
	var replicas []backup.Status
	err = control.Call(ask, control.Socket(runDir, control.Receiver), "GET", "/replicas", nil, &replicas)
	hung := err != nil && ask.Err() != nil
	var conflicts []backup.Conflict
	if err == nil {
		err = control.Call(ask, control.Socket(runDir, control.Receiver), "GET", "/conflicts", nil, &conflicts)
	}
	var unprotected []steward.Status
	var ways []paths.Path
	if err == nil {
		// A receiver that was started before an upgrade does not know these: that hides nothing else.
		control.Call(ask, control.Socket(runDir, control.Receiver), "GET", "/unprotected", nil, &unprotected)
		control.Call(ask, control.Socket(runDir, control.Receiver), "GET", "/paths", nil, &ways)
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && !hung && !errors.Is(err, control.ErrDown) {
		return nil, err
	}
	for _, s := range replicas {
		seen[s.Domain] = Row{Domain: s.Domain, Role: Backup, Peer: s.Peer, State: s.State.String(), Protected: s.State == backup.Ready, NoArbiter: s.Health.Error, Epoch: s.Epoch, Generation: s.Generation, Backup: &s}
	}
	recs, unread, err := store.Dir(stateDir).All()
	if err != nil {
		return nil, err
	}
	for n, o := range recs {
		r, ok := recorded(n, o)
		if !ok && hung && o.Role == xlft.HostBackup {
			r.Role, r.State, ok = Backup, Unresponsive, true
		}
		if was, running := seen[n]; !running && ok {
			seen[n] = r
		} else if was.State == Unresponsive {
			was.Peer, was.Generation = o.Peer, o.Generation
			seen[n] = was
		}
	}
	again, err := protector.Restarting(runDir)
	if err != nil {
		return nil, err
	}
	for _, n := range again {
		// All else that is known of it is worse, and goes first.
		if r := seen[n]; r.State == "" || r.State == TookOver {
			r.Domain, r.State = n, StartingAgain
			if r.Role == "" {
				r.Role, r.Peer, r.Generation = Primary, recs[n].Peer, recs[n].Generation
			}
			seen[n] = r
		}
	}
	for _, c := range conflicts {
		r := seen[c.Domain]
		r.Domain, r.Peer, r.State, r.Protected = c.Domain, c.Peer, SplitBrain, false
		if r.Role == "" {
			r.Role = Owner
		}
		seen[c.Domain] = r
	}
	for _, u := range unprotected {
		r, known := seen[u.Domain]
		if known && r.Role == Primary && r.Primary != nil {
			continue // it was started meanwhile
		}
		if r.Unprotected = &u; r.State == "" || r.State == TookOver {
			r.Domain, r.State = u.Domain, Unprotected
			if u.Stopped {
				r.State = StoppedHere
			}
			if r.Role == "" {
				r.Role = None
			}
		}
		seen[u.Domain] = r
	}
	for n := range unread {
		if _, running := seen[n]; !running {
			seen[n] = Row{Domain: n, Role: None, State: Unreadable}
		}
	}
	rows := make([]Row, 0, len(seen))
	for _, r := range seen {
		for _, p := range ways {
			if p.Peer == r.Peer {
				r.Paths = append(r.Paths, p)
			}
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Domain, b.Domain) })
	return rows, nil
}

// Patience is how long a daemon may take to answer.
const Patience = 3 * time.Second

// asked returns what a protector says of its domain; false if there is none behind
// the socket any more.
func asked(ctx context.Context, runDir, domain string) (Row, bool) {
	st, err := protector.NewClient(runDir, domain).Status(ctx)
	switch {
	case err == nil:
		state := st.State.String()
		if st.SplitBrain {
			state = SplitBrain
		}
		return Row{Domain: domain, Role: Primary, Peer: st.Peer, State: state, Protected: st.Protected, NoArbiter: st.Health.Error, Epoch: st.Epoch, Generation: st.Generation, Primary: &st}, true
	case ctx.Err() != nil:
		return Row{Domain: domain, Role: Primary, State: Unresponsive}, true
	}
	return Row{}, false
}

// recorded returns what a record alone says; false if it says nothing that an
// operator has to know.
func recorded(domain string, o xlft.Ownership) (Row, bool) {
	r := Row{Domain: domain, Peer: o.Peer, Generation: o.Generation}
	switch {
	case o.Role == xlft.HostFailed:
		r.Role, r.State = Owner, Failed
	case o.Role == xlft.HostOwner && o.Pending:
		r.Role, r.State = Owner, TakingOver
	case o.Role == xlft.HostOwner:
		r.Role, r.State = Owner, TookOver
	case o.Role == xlft.HostYielded:
		r.Role, r.State = Yielded, GivenUp
	case o.Role == xlft.HostPrimary && o.Exposed:
		r.Role, r.State = Primary, ProtectorDead
	default:
		return r, false
	}
	return r, true
}

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

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/store"
	"xlft/xlft/primary"
)

// A Row is what one host knows of a domain. docs/operation.md says what each
// State means.
type Row struct {
	Domain     string          `json:"domain"`
	Role       Role            `json:"role"`
	Peer       string          `json:"peer"`
	State      string          `json:"state"`
	Protected  bool            `json:"protected"`
	Epoch      uint64          `json:"epoch"`
	Generation uint64          `json:"generation"`
	Primary    *primary.Status `json:"primary,omitempty"`
	Backup     *backup.Status  `json:"backup,omitempty"`
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
	GivenUp       = "given-up"        // the peer runs the domain
	ProtectorDead = "protector-dead"  // the output stays held until a protector runs again
)

// Rows returns what this host knows, by domain. It asks each daemon behind a
// socket in runDir and reads the records in stateDir.
func Rows(ctx context.Context, runDir, stateDir string) ([]Row, error) {
	seen := map[string]Row{}
	names, err := control.Names(runDir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		st, err := protector.NewClient(runDir, n).Status(ctx)
		if err != nil {
			continue // ended meanwhile, or left behind by a crash
		}
		seen[n] = Row{Domain: n, Role: Primary, Peer: st.Peer, State: st.State.String(), Protected: st.Protected, Epoch: st.Epoch, Generation: st.Generation, Primary: &st}
	}
	var replicas []backup.Status
	if err := control.Call(ctx, control.Socket(runDir, control.Receiver), "GET", "/replicas", nil, &replicas); err != nil && !errors.Is(err, control.ErrDown) {
		return nil, err
	}
	for _, s := range replicas {
		seen[s.Domain] = Row{Domain: s.Domain, Role: Backup, Peer: s.Peer, State: s.State.String(), Protected: s.State == backup.Ready, Epoch: s.Epoch, Generation: s.Generation, Backup: &s}
	}
	recs, err := store.Dir(stateDir).All()
	if err != nil {
		return nil, err
	}
	for n, o := range recs {
		if r, ok := recorded(n, o); ok {
			if _, running := seen[n]; !running {
				seen[n] = r
			}
		}
	}
	rows := make([]Row, 0, len(seen))
	for _, r := range seen {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Domain, b.Domain) })
	return rows, nil
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

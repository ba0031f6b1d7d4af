package backup

import (
	"slices"
	"strings"
	"time"
)

// A Conflict is a domain that runs here, and that a peer offered as one that runs
// there: a split brain.
type Conflict struct {
	Domain string    `json:"domain"`
	Peer   string    `json:"peer"`
	Since  time.Time `json:"since"`
	Last   time.Time `json:"last"` // the newest offer
}

// conflictForgotten is how long after a peer's last offer a conflict counts as
// resolved: a protector offers its domain every minute at least.
const conflictForgotten = 5 * time.Minute

// conflict notes that a peer offers a domain that runs here.
func (r *Receiver) conflict(domain, peer string) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conflicts == nil {
		r.conflicts = map[string]Conflict{}
	}
	c, ok := r.conflicts[domain]
	if !ok || c.Peer != peer || now.Sub(c.Last) > conflictForgotten {
		c = Conflict{Domain: domain, Peer: peer, Since: now}
	}
	c.Last = now
	r.conflicts[domain] = c
}

// resolved forgets a domain's conflict.
func (r *Receiver) resolved(domain string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conflicts, domain)
}

// Conflicts returns the domains that run both here and on a peer, by name.
func (r *Receiver) Conflicts() []Conflict {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []Conflict{}
	for _, c := range r.conflicts {
		if time.Since(c.Last) <= conflictForgotten {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Conflict) int { return strings.Compare(a.Domain, b.Domain) })
	return all
}

package simxen

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"xlft/xlft"
)

// An Arbiter gives each generation of a domain away once.
type Arbiter struct {
	mu     sync.Mutex
	owners map[string]xlft.Asker
	cut    map[string]bool // hosts that can't reach it
	lossy  map[string]bool // hosts whose answers get lost
}

// NewArbiter returns an arbiter that everybody reaches.
func NewArbiter() *Arbiter {
	return &Arbiter{owners: map[string]xlft.Asker{}, cut: map[string]bool{}, lossy: map[string]bool{}}
}

// Cut keeps a host from it, or lets it through again.
func (a *Arbiter) Cut(host string, cut bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cut[host] = cut
}

// Lossy makes it do as a host asks, but lose the answer.
func (a *Arbiter) Lossy(host string, lossy bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lossy[host] = lossy
}

// Owner returns who won a generation, or "".
func (a *Arbiter) Owner(domain string, generation uint64) xlft.Asker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.owners[fmt.Sprint(domain, "/", generation)]
}

// Arbiter is a process's way to the arbiter.
func (p *Process) Arbiter(a *Arbiter) xlft.Arbiter { return &claims{p, a} }

type claims struct {
	p *Process
	a *Arbiter
}

func (c *claims) String() string { return "simulated" }

func (c *claims) Claim(_ context.Context, q xlft.ArbiterQuery) (bool, error) {
	c.p.h.work()
	defer c.p.h.work() // the answer has its way too
	if c.p.Dead() {
		return true, nil // its goroutines come to an end; nothing that they do has an effect
	}
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	if c.a.cut[c.p.h.Name] {
		return false, errors.New("simxen: arbiter unreachable")
	}
	key := fmt.Sprint(q.Domain, "/", q.Generation)
	if c.a.owners[key] == "" {
		c.a.owners[key] = q.Asker
	}
	if c.a.lossy[c.p.h.Name] {
		return false, errors.New("simxen: the arbiter's answer was lost")
	}
	return c.a.owners[key] == q.Asker, nil
}

// Fence is the way of a process to an arbiter that takes the peer's power. It
// uses a's faults.
func (p *Process) Fence(a *Arbiter, hosts ...*Host) xlft.Arbiter { return &fence{p, a, hosts} }

type fence struct {
	p     *Process
	a     *Arbiter
	hosts []*Host
}

func (f *fence) String() string { return "simulated fence" }

func (f *fence) Claim(_ context.Context, q xlft.ArbiterQuery) (bool, error) {
	f.p.h.work()
	defer f.p.h.work()
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	switch {
	case f.p.Dead():
		return true, nil
	case f.a.cut[f.p.h.Name]:
		return false, errors.New("simxen: fence agent unreachable")
	case q.Handed && q.Asker == xlft.AskerBackup:
		return true, nil
	case q.Handed:
		return false, errors.New("simxen: the domain was handed over")
	}
	for _, h := range f.hosts {
		if h.Name == q.Peer {
			h.Crash()
		}
	}
	if f.a.lossy[f.p.h.Name] {
		return false, errors.New("simxen: the fence agent's answer was lost")
	}
	return true, nil
}

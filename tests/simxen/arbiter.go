package simxen

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"xlft/xlft"
	"xlft/xlft/config"
)

// An Arbiter gives each generation of a domain to the side that asks first, by one compare-and-swap.
type Arbiter struct {
	mu     sync.Mutex
	owners map[string]xlft.Side
	first  map[string][]byte
	cut    map[string]bool // hosts that can't reach the arbiter
	lossy  map[string]bool // hosts that do not get its answers
}

// NewArbiter returns an arbiter that every host reaches.
func NewArbiter() *Arbiter {
	return &Arbiter{owners: map[string]xlft.Side{}, first: map[string][]byte{}, cut: map[string]bool{}, lossy: map[string]bool{}}
}

// Cut makes the arbiter unreachable for a host, or reachable again.
func (a *Arbiter) Cut(host string, cut bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cut[host] = cut
}

// Lossy makes the arbiter grant a host's claims and lose the answers.
func (a *Arbiter) Lossy(host string, lossy bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lossy[host] = lossy
}

// Owner returns the side that won a generation, or "".
func (a *Arbiter) Owner(domain string, generation uint64) xlft.Side {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.owners[fmt.Sprint(domain, "/", generation)]
}

// Arbiter returns a as the process reaches it.
func (p *Process) Arbiter(a *Arbiter) xlft.Arbiter { return &claims{p, a} }

// Claims returns an arbiter as the process reaches it. A claim of a dead process is granted at once: nothing that follows
// has an effect, and a session that waits for an answer would never end.
func (p *Process) Claims(a xlft.Arbiter) xlft.Arbiter { return whileAlive{a, p} }

type whileAlive struct {
	xlft.Arbiter
	p *Process
}

func (w whileAlive) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	if w.p.Dead() {
		return true, nil
	}
	return w.Arbiter.Claim(ctx, c)
}

type claims struct {
	p *Process
	a *Arbiter
}

// First keeps a value under a key of the arbiter that has none, and returns what the key has then, as the process reaches
// it: an error if it can't be reached, or if the answer gets lost.
func (p *Process) First(a *Arbiter, key string, value []byte) (there []byte, err error) {
	p.h.work()
	defer p.h.work() // the answer takes time too
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case p.Dead():
		return nil, errors.New("simxen: the process is dead")
	case a.cut[p.h.Name]:
		return nil, errors.New("simxen: arbiter unreachable")
	}
	if a.first[key] == nil {
		a.first[key] = value
	}
	if a.lossy[p.h.Name] {
		return nil, errors.New("simxen: the arbiter's answer was lost")
	}
	return a.first[key], nil
}

// Host is the name of the process's host.
func (p *Process) Host() string { return p.h.Name }

func (c *claims) String() string { return "simulated" }

func (c *claims) Claim(_ context.Context, q xlft.Claim) (bool, error) {
	c.p.h.work()
	defer c.p.h.work() // the answer takes time too
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
		c.a.owners[key] = q.Side
	}
	if c.a.lossy[c.p.h.Name] {
		return false, errors.New("simxen: the arbiter's answer was lost")
	}
	return c.a.owners[key] == q.Side, nil
}

// FenceAgent returns a fence agent as the process calls it: the agent cuts a host's power. It is unreachable or loses
// its answers when a does.
func (p *Process) FenceAgent(a *Arbiter, hosts ...*Host) func(context.Context, config.FenceAgent, string) ([]byte, int, error) {
	return func(_ context.Context, f config.FenceAgent, action string) ([]byte, int, error) {
		if action == "metadata" {
			return []byte(FenceMetadata), 0, nil
		}
		p.h.work()
		defer p.h.work()
		a.mu.Lock()
		defer a.mu.Unlock()
		switch {
		case p.Dead():
			return nil, map[string]int{"status": 2}[action], nil // its goroutines come to an end; nothing that they do has an effect
		case a.cut[p.h.Name]:
			return nil, 1, errors.New("simxen: fence agent unreachable")
		}
		code := 0
		for _, h := range hosts {
			switch {
			case h.Name != f.Options["plug"]:
			case action == "off":
				h.Crash()
			case h.Down():
				code = 2
			}
		}
		if a.lossy[p.h.Name] {
			return nil, 1, errors.New("simxen: the fence agent's answer was lost")
		}
		return nil, code, nil
	}
}

// FenceMetadata is what a fence agent says of itself that takes a host's power.
const FenceMetadata = `<resource-agent name="fence_simxen"><actions><action name="on" automatic="0"/><action name="off"/><action name="reboot"/><action name="status"/><action name="metadata"/></actions></resource-agent>`

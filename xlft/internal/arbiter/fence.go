package arbiter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
)

// A Fence is the xlft.Arbiter that powers the other host off: fence agents, which
// keep ClusterLabs' calling convention, do it, and an agent's action=status that says
// off wins the claim.
//
// An agent whose status says off before the host is breaks promise P3, and with shared
// storage P2: try an agent out before domains are trusted to it.
type Fence struct {
	Asker
	// Peers are the hosts that can be fenced.
	Peers map[string]config.Peer
	// Agent runs a fence agent; nil: RunAgent. A simulation has its own.
	Agent func(ctx context.Context, f config.FenceAgent, action string) (out []byte, code int, err error)

	mu      sync.Mutex
	targets map[string]*target
	fits    map[string]bool // agents whose metadata was good
}

// A target is a peer that is fenced once at a time.
type target struct {
	mu  sync.Mutex
	off time.Time // when it was last known to be off
}

// errHanded: no side may fence a host that has been told to run the domain.
var errHanded = errors.New("the domain was handed over to the other host, which does not answer: it may run there. It is asked again; bring that host's receiver back")

func (a *Fence) String() string { return "fence" }

// Claim is xlft.Arbiter's.
func (a *Fence) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	reached, end := a.outside(ctx, c)
	defer end()
	if won, decided, err := a.consult(ctx, c); decided {
		return won, err
	}
	if err := reached(); err != nil {
		return false, err
	}
	if err := a.fence(ctx, c); err != nil {
		return false, err
	}
	return true, nil
}

// fence powers the peer of a claim off, unless that was done after the call.
func (a *Fence) fence(ctx context.Context, c xlft.Claim) error {
	peer := c.Peer
	p, ok := a.Peers[peer]
	if !ok || p.Fence == nil {
		return fmt.Errorf("no [peer.%s.fence] in the configuration", peer)
	}
	asked := time.Now()
	a.mu.Lock()
	if a.targets == nil {
		a.targets = map[string]*target{}
	}
	t := a.targets[peer]
	if t == nil {
		t = &target{}
		a.targets[peer] = t
	}
	a.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.off.After(asked) {
		return nil
	}
	if p.Fence.Delay > 0 && c.Side == xlft.Backup { // the host that runs the domain comes first
		a.Log.Warn("waiting before the other host is fenced", zap.String("peer", peer), zap.Duration("delay", p.Fence.Delay))
		select {
		case <-time.After(p.Fence.Delay):
		case <-c.Withdrawn:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-c.Withdrawn:
		return xlft.ErrWithdrawn
	case <-ctx.Done():
		return ctx.Err()
	default:
	}
	begun := time.Now()
	var errs []error
	for i, level := range p.Fence.Levels {
		a.Log.Warn("fencing the other host", zap.String("peer", peer), zap.Int("level", i+1), zap.String("agent", level[0].Agent))
		err := a.level(ctx, level)
		if err == nil {
			t.off = time.Now()
			a.Log.Warn("the other host is off", zap.String("peer", peer), zap.Duration("took", t.off.Sub(begun)))
			return nil
		}
		if len(p.Fence.Levels) > 1 {
			err = fmt.Errorf("level %d: %w", i+1, err)
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("fence %s: %w", peer, errors.Join(errs...))
}

// level has all agents of a level take the power. One that fails is enough for the next
// level: what others of it took is not given back.
func (a *Fence) level(ctx context.Context, agents []config.FenceAgent) error {
	for _, f := range agents {
		if err := a.off(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// off has an agent take the power. What counts is what its status says then: an agent
// may fail because the host is off already, and one that succeeds may have switched
// something else off, or only have sent a command.
func (a *Fence) off(ctx context.Context, f config.FenceAgent) error {
	a.mu.Lock()
	fits := a.fits[f.Agent]
	a.mu.Unlock()
	if !fits {
		if err := a.fit(ctx, f); err != nil {
			return err
		}
	}
	_, failed, err := a.agent(ctx, f, "off")
	_, code, serr := a.agent(ctx, f, "status")
	switch {
	case code == statusOff && err != nil && failed == statusOff:
		// As a shell does that can't read its script, and fence-agents (EC_BAD_ARGS in
		// fencing.py) for options that they do not take.
		return fmt.Errorf("exit status %d of action=status would mean that the host is off, but action=off ends with it too: the agent or its options are wrong: %w", statusOff, err)
	case code == statusOff:
		if err != nil {
			a.Log.Warn("the agent fails, and says that the host is off", zap.Error(err))
		}
		return nil
	case err == nil && code == statusOn:
		return fmt.Errorf("%s, action off: it reports success, but its status says that the host is on", f.Agent)
	case err == nil:
		return fmt.Errorf("%s, action off: it reports success, but can't say that the host is off: %w", f.Agent, serr)
	case code == statusOn:
		return fmt.Errorf("%w (and its status says that the host is on)", err)
	}
	return errors.Join(err, serr)
}

// fit says why an agent can't be an arbiter.
func (a *Fence) fit(ctx context.Context, f config.FenceAgent) error {
	out, _, err := a.agent(ctx, f, "metadata")
	if err == nil {
		err = unfit(f.Agent, out)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fits == nil {
		a.fits = map[string]bool{}
	}
	a.fits[f.Agent] = err == nil
	return err
}

// Check says why a peer, which is on, could not be fenced now; nil if its agents could.
func (a *Fence) Check(ctx context.Context, peer string) error {
	p, ok := a.Peers[peer]
	if !ok || p.Fence == nil {
		return fmt.Errorf("no [peer.%s.fence] in the configuration", peer)
	}
	errs := []error{a.reaches(ctx)}
	for i, level := range p.Fence.Levels {
		for _, f := range level {
			err := a.fit(ctx, f)
			if err == nil {
				_, code, serr := a.agent(ctx, f, "status")
				if err = serr; code == statusOff {
					err = fmt.Errorf("%s, action status: it says that %s is off. If that is not so, its options name another host, and a claim would be won while %s is on", f.Agent, peer, peer)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("fence agent of %s, level %d: %w", peer, i+1, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (a *Fence) agent(ctx context.Context, f config.FenceAgent, action string) (out []byte, code int, err error) {
	if a.Agent != nil {
		return a.Agent(ctx, f, action)
	}
	return RunAgent(ctx, f, action)
}

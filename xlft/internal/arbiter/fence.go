package arbiter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sort"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
)

// A Fence is the xlft.Arbiter that powers the other host off: a fence agent,
// which keeps ClusterLabs' calling convention, does it, and the agent's success
// wins the claim.
//
// An agent that reports success before the host is off breaks promise P3, and
// with shared storage P2: try an agent out before domains are trusted to it.
type Fence struct {
	Asker
	// Peers are the hosts that can be fenced.
	Peers map[string]config.Peer
	// Agent runs a fence agent; nil: RunAgent. A simulation has its own.
	Agent func(ctx context.Context, f config.Fence, action string) (code int, err error)

	mu      sync.Mutex
	targets map[string]*target
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
	if won, decided, err := a.consult(ctx, c); decided {
		return won, err
	}
	if err := a.fence(ctx, c.Peer, c.Withdrawn); err != nil {
		return false, err
	}
	return true, nil
}

// fence powers a peer off, unless that was done after the call.
func (a *Fence) fence(ctx context.Context, peer string, withdrawn <-chan struct{}) error {
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
	if p.Fence.Delay > 0 {
		a.Log.Warn("waiting before the other host is fenced", zap.String("peer", peer), zap.Duration("delay", p.Fence.Delay))
		select {
		case <-time.After(p.Fence.Delay):
		case <-withdrawn:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-withdrawn:
		return xlft.ErrWithdrawn
	default:
	}
	a.Log.Warn("fencing the other host", zap.String("peer", peer), zap.String("agent", p.Fence.Agent))
	begun := time.Now()
	if _, err := a.agent(ctx, *p.Fence, "off"); err != nil {
		return fmt.Errorf("fence %s: %w", peer, err)
	}
	t.off = time.Now()
	a.Log.Warn("the other host is off", zap.String("peer", peer), zap.Duration("took", t.off.Sub(begun)))
	return nil
}

// Check says why a peer could not be fenced now; nil if its agent answers.
func (a *Fence) Check(ctx context.Context, peer string) error {
	p, ok := a.Peers[peer]
	if !ok || p.Fence == nil {
		return fmt.Errorf("no [peer.%s.fence] in the configuration", peer)
	}
	code, err := a.agent(ctx, *p.Fence, "status")
	if err != nil && code != statusOff {
		return fmt.Errorf("fence agent of %s: %w", peer, err)
	}
	return nil
}

func (a *Fence) agent(ctx context.Context, f config.Fence, action string) (code int, err error) {
	if a.Agent != nil {
		return a.Agent(ctx, f, action)
	}
	return RunAgent(ctx, f, action)
}

// statusOff is an agent's exit status if the host is off.
const statusOff = 2

// maxOutput is how much of an agent's output an error quotes, in bytes.
const maxOutput = 2 << 10

// RunAgent runs a fence agent as ClusterLabs' Fence Agent API says: options are
// lines on standard input, and exit status 0 is success.
func RunAgent(ctx context.Context, f config.Fence, action string) (code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	var in bytes.Buffer
	keys := make([]string, 0, len(f.Options))
	for k := range f.Options {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&in, "%s=%s\n", k, f.Options[k])
	}
	fmt.Fprintf(&in, "action=%s\n", action)
	cmd := exec.CommandContext(ctx, f.Agent)
	cmd.Stdin = &in
	cmd.WaitDelay = time.Second // a child of the agent may keep its output open
	output, err := cmd.CombinedOutput()
	if err == nil {
		return 0, nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v", f.Timeout)
	}
	text := strings.TrimSpace(string(output[:min(len(output), maxOutput)]))
	if text != "" {
		text = ": " + text
	}
	code = -1
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	return code, fmt.Errorf("%s, action %s: %w%s", f.Agent, action, err, text)
}

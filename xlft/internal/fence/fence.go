// Package fence is the arbiter that takes the other host's power: an agent that
// keeps ClusterLabs' calling convention does it, and its success is the answer.
//
// The one rule a caller must know: an agent that reports success before the
// host is off breaks promise P3, and with shared storage P2. An agent is to be
// tried out before domains are trusted to it.
package fence

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
	"xlft/xlft/wire"
)

// Arbiter is an xlft.Arbiter.
type Arbiter struct {
	// Peers are the hosts that can be fenced.
	Peers map[string]config.Peer
	// Ask asks the other host about a domain that this one wants to keep; nil
	// to fence at once.
	Ask func(ctx context.Context, peer string, q wire.OwnerQuery) (wire.OwnerResult, error)
	// AskTimeout is how long it has to answer before it is fenced.
	AskTimeout time.Duration
	Log        *zap.Logger

	mu   sync.Mutex
	turn map[string]*turn
}

// A turn makes the fencings of a peer come after one another.
type turn struct {
	mu  sync.Mutex
	off time.Time // when it was last known to be
}

// errHanded: nobody may fence a host that has been told to run the domain.
var errHanded = errors.New("the domain was handed over to the other host, which does not answer: it may run there. It is asked again; bring that host's receiver back")

func (a *Arbiter) String() string { return "fence" }

// Claim is xlft.Arbiter's.
func (a *Arbiter) Claim(ctx context.Context, q xlft.ArbiterQuery) (bool, error) {
	if q.Handed {
		if q.Asker == xlft.AskerBackup {
			return true, nil // by the primary's own word
		}
		return false, errHanded
	}
	if q.Asker == xlft.AskerPrimary && a.Ask != nil {
		ask, cancel := context.WithTimeout(ctx, a.AskTimeout)
		r, err := a.Ask(ask, q.Peer, wire.OwnerQuery{Domain: q.Domain, Generation: q.Generation, Reclaim: true})
		cancel()
		switch {
		case err != nil:
			a.Log.Warn("the other host does not say that it gave the domain up", zap.String("peer", q.Peer), zap.Error(err))
		case r.Role == wire.RoleNone:
			return true, nil
		case r.Role == wire.RoleRunning && r.Generation >= q.Generation:
			return false, nil
		}
	}
	if err := a.fence(ctx, q.Peer); err != nil {
		return false, err
	}
	return true, nil
}

// fence takes the peer's power, unless that was done since it was asked for.
func (a *Arbiter) fence(ctx context.Context, peer string) error {
	p, ok := a.Peers[peer]
	if !ok || p.Fence == nil {
		return fmt.Errorf("no [peer.%s.fence] in the configuration", peer)
	}
	asked := time.Now()
	a.mu.Lock()
	if a.turn == nil {
		a.turn = map[string]*turn{}
	}
	t := a.turn[peer]
	if t == nil {
		t = &turn{}
		a.turn[peer] = t
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
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	a.Log.Warn("fencing the other host", zap.String("peer", peer), zap.String("agent", p.Fence.Agent))
	begun := time.Now()
	if _, err := Run(ctx, *p.Fence, "off"); err != nil {
		return fmt.Errorf("fence %s: %w", peer, err)
	}
	t.off = time.Now()
	a.Log.Warn("the other host is off", zap.String("peer", peer), zap.Duration("took", t.off.Sub(begun)))
	return nil
}

// Check says why a peer could not be fenced now; nil if its agent answers.
func (a *Arbiter) Check(ctx context.Context, peer string) error {
	p, ok := a.Peers[peer]
	if !ok || p.Fence == nil {
		return fmt.Errorf("no [peer.%s.fence] in the configuration", peer)
	}
	code, err := Run(ctx, *p.Fence, "status")
	if err != nil && code != statusOff {
		return fmt.Errorf("fence agent of %s: %w", peer, err)
	}
	return nil
}

// statusOff is an agent's exit status if the host is off.
const statusOff = 2

// output is how much of what an agent says is kept for an error.
const output = 2 << 10

// Run runs an agent as ClusterLabs' Fence Agent API says: the options come as
// lines on standard input, and exit status 0 is success.
func Run(ctx context.Context, f config.Fence, action string) (code int, err error) {
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
	said, err := cmd.CombinedOutput()
	if err == nil {
		return 0, nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v", f.Timeout)
	}
	text := strings.TrimSpace(string(said[:min(len(said), output)]))
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

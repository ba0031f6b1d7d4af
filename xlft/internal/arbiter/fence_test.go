package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// agent writes a fence agent that records its input and then runs script, which has its
// action; what script leaves to it, it does right.
func agent(t *testing.T, script string) (f config.FenceAgent, told func() string) {
	t.Helper()
	dir := t.TempDir()
	path, log := filepath.Join(dir, "fence_test"), filepath.Join(dir, "log")
	text := fmt.Sprintf(`#!/bin/sh
here=%s
in=$(cat)
action=$(echo "$in" | sed -n s/^action=//p)
[ $action = metadata ] || echo "$in" >>$here/log
%s
case $action in
metadata) echo '%s' ;;
off) touch $here/off ;;
status) [ ! -e $here/off ] || exit 2 ;;
*) exit 1 ;;
esac
`, dir, script, power)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return config.FenceAgent{Agent: path, Timeout: 20 * time.Second, Options: map[string]string{"ip": "192.0.2.9", "plug": "3"}}, func() string {
		b, _ := os.ReadFile(log)
		return string(b)
	}
}

func fenceBy(levels ...config.FenceAgent) *Fence {
	f := &config.Fence{}
	for _, a := range levels {
		f.Levels = append(f.Levels, []config.FenceAgent{a})
	}
	return fenceWith(f)
}

func fenceWith(f *config.Fence) *Fence {
	return &Fence{Peers: map[string]config.Peer{"beta": {Name: "beta", Fence: f}}, Asker: Asker{Timeout: time.Second, Log: zap.NewNop()}}
}

func TestClaim(t *testing.T) {
	const off = "ip=192.0.2.9\nplug=3\naction=off\nip=192.0.2.9\nplug=3\naction=status\n"
	none := func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
		return wire.OwnerResult{Role: wire.RoleNone}, nil
	}
	runs := func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
		return wire.OwnerResult{Role: wire.RoleRunning, Generation: 4}, nil
	}
	waits := func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
		return wire.OwnerResult{Role: wire.RoleReplica}, nil
	}
	silent := func(ctx context.Context, _ string, _ wire.OwnerQuery) (wire.OwnerResult, error) {
		return wire.OwnerResult{}, errors.New("connection timed out")
	}
	refuses := func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
		return wire.OwnerResult{}, fmt.Errorf("ask peer: %w", &wire.Refusal{Code: wire.CodeInternal, Reason: "input/output error"})
	}
	var asked atomic.Int64 // the next question does not wait for the last one's answer
	refusesOnce := func(ctx context.Context, peer string, q wire.OwnerQuery) (wire.OwnerResult, error) {
		if asked.Add(1) == 1 {
			return refuses(ctx, peer, q)
		}
		<-ctx.Done()
		return wire.OwnerResult{}, ctx.Err()
	}
	for _, c := range []struct {
		name   string
		script string
		side   xlft.Side
		peer   string
		handed bool
		ask    func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error)
		won    bool
		err    string
		told   string
	}{
		{"backup", "", xlft.Backup, "beta", false, nil, true, "", off},
		{"backup, primary's host silent", "", xlft.Backup, "beta", false, silent, true, "", off},
		{"backup, primary's host has the domain", "", xlft.Backup, "beta", false, runs, false, "beta answers, and has web1", ""},
		{"backup, primary's host has lost the domain", "", xlft.Backup, "beta", false, none, true, "", ""},
		{"backup, primary's host does not know", "", xlft.Backup, "beta", false, waits, false, "does not know yet", ""},
		{"backup, primary's host can't read its record", "", xlft.Backup, "beta", false, refuses, false, "input/output error", ""},
		{"agent fails", "[ $action = metadata ] || { echo no route to BMC >&2; exit 1; }", xlft.Backup, "beta", false, nil, false, "exit status 1: no route to BMC", off},
		{"agent hangs", "[ $action = metadata ] || exec sleep 60", xlft.Backup, "beta", false, nil, false, "no answer within", off},
		{"unknown peer", "", xlft.Backup, "gamma", false, nil, false, "no [peer.gamma.fence]", ""},
		{"handed over, backup", "", xlft.Backup, "beta", true, nil, true, "", ""},
		{"handed over, primary", "", xlft.Primary, "beta", true, none, false, "was handed over", ""},
		{"primary, peer silent", "", xlft.Primary, "beta", false, silent, true, "", off},
		{"primary, peer has destroyed it", "", xlft.Primary, "beta", false, none, true, "", ""},
		{"primary, peer runs it", "", xlft.Primary, "beta", false, runs, false, "", ""},
		{"primary, peer claims it too", "", xlft.Primary, "beta", false, waits, false, "does not know yet", ""},
		{"primary, peer can't read its record", "", xlft.Primary, "beta", false, refuses, false, "input/output error", ""},
		{"primary, peer answered once", "", xlft.Primary, "beta", false, refusesOnce, false, "input/output error", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, told := agent(t, c.script)
			if strings.Contains(c.script, "sleep") {
				f.Timeout = 2 * time.Second // enough for a loaded machine to start it
			}
			a := fenceBy(f)
			a.Ask = c.ask
			won, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", Generation: 4, Side: c.side, Peer: c.peer, Handed: c.handed})
			if won != c.won || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("won %v, error %v; want %v, %q", won, err, c.won, c.err)
			}
			if got := told(); got != c.told {
				t.Errorf("the agent was told %q, want %q", got, c.told)
			}
		})
	}
}

// A host that has lost the domain may still write to the storage of both.
func TestSharedIsNotLeft(t *testing.T) {
	f, told := agent(t, "")
	a := fenceBy(f)
	a.Ask = func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
		return wire.OwnerResult{Role: wire.RoleNone}, nil
	}
	won, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", Generation: 4, Side: xlft.Backup, Peer: "beta", Shared: true})
	if won || err == nil || !strings.Contains(err.Error(), "may still write") || told() != "" {
		t.Errorf("won %v, error %v, the agent was told %q", won, err, told())
	}
}

// A claim that is withdrawn while the other host is asked ends at once.
func TestWithdrawnWhileAsked(t *testing.T) {
	f, told := agent(t, "")
	a := fenceBy(f)
	a.Timeout = time.Hour
	withdrawn := make(chan struct{})
	a.Ask = func(ctx context.Context, _ string, q wire.OwnerQuery) (wire.OwnerResult, error) {
		if q.Reclaim {
			t.Error("a backup reclaims the domain")
		}
		close(withdrawn)
		<-ctx.Done()
		return wire.OwnerResult{}, ctx.Err()
	}
	won, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", Generation: 4, Side: xlft.Backup, Peer: "beta", Withdrawn: withdrawn})
	if won || !errors.Is(err, xlft.ErrWithdrawn) || told() != "" {
		t.Errorf("won %v, error %v, the agent was told %q", won, err, told())
	}
}

// A host is asked for fence_after before it is fenced; a backup, which does not run the
// domain, asks for longer.
func TestFenceAfter(t *testing.T) {
	c := &config.Config{Name: "alpha", Arbiter: config.Arbiter{Type: "fence", FenceAfter: 3 * time.Second}, Default: config.Domain{FailureTimeout: time.Second}}
	a := New(c, "test", nil, zap.NewNop()).(*Fence)
	if a.Timeout != 3*time.Second || a.Second != time.Second || a.HeadStart != 2*time.Second || a.Host != "alpha" {
		t.Errorf("%s asks for %v, %v more as the second, and %v more as a backup", a.Host, a.Timeout, a.Second, a.HeadStart)
	}
	c.Arbiter.Type = "none"
	if n := New(c, "test", nil, zap.NewNop()).(None); n.Timeout != 2*time.Second {
		t.Errorf("none asks for %v", n.Timeout)
	}
}

// When many domains lose the same host at once, the host is fenced once. A
// domain that loses it later has it fenced again.
func TestOncePerHost(t *testing.T) {
	f, told := agent(t, "[ $action != off ] || sleep 0.2")
	a := fenceBy(f)
	claim := func() {
		if won, err := a.Claim(t.Context(), xlft.Claim{Side: xlft.Backup, Peer: "beta"}); !won || err != nil {
			t.Errorf("won %v, error %v", won, err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(claim)
	}
	wg.Wait()
	if n := strings.Count(told(), "action=off"); n != 1 {
		t.Errorf("fenced %d times", n)
	}
	claim()
	if n := strings.Count(told(), "action=off"); n != 2 {
		t.Errorf("fenced %d times in all, want 2", n)
	}
}

// The delay lets the host that runs the domain fence first.
func TestDelay(t *testing.T) {
	f, told := agent(t, "")
	a := fenceBy(f)
	a.Peers["beta"].Fence.Delay = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if won, err := a.Claim(ctx, xlft.Claim{Side: xlft.Backup, Peer: "beta"}); won || err == nil {
		t.Errorf("won %v, error %v", won, err)
	}
	if told() != "" {
		t.Errorf("the agent was told %q", told())
	}
}

// A claim that is withdrawn, before its delay or within it, fences nobody.
func TestWithdrawnFencesNobody(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Hour} {
		f, told := agent(t, "")
		a := fenceBy(f)
		a.Peers["beta"].Fence.Delay = delay
		withdrawn := make(chan struct{})
		if delay == 0 {
			close(withdrawn)
		} else {
			time.AfterFunc(50*time.Millisecond, func() { close(withdrawn) })
		}
		won, err := a.Claim(t.Context(), xlft.Claim{Side: xlft.Backup, Peer: "beta", Withdrawn: withdrawn})
		if won || !errors.Is(err, xlft.ErrWithdrawn) || told() != "" {
			t.Errorf("delay %v: won %v, error %v; the agent was told %q", delay, won, err, told())
		}
	}
}

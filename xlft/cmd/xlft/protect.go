package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
)

func (a *app) protectCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "protect DOMAIN",
		Short:  "protect a domain in the foreground (what xlft@.service runs)",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(syscall.SIGHUP) // it has no terminal, and reads its configuration once
			domain, log := args[0], daemonLog()
			r := protecting{app: a, domain: domain, runDir: config.DefaultRunDir, log: log}
			if c, err := r.config(); err == nil {
				protector.MarkStopped(c.RunDir, domain, "") // who starts this wants it
			}
			r.resume(cmd.Context())
			outcome, err := persist(cmd.Context(), log, r.once)
			for err != nil && r.again(cmd.Context(), err) {
				outcome, err = persist(cmd.Context(), log, r.once)
			}
			runDir := r.runDir
			if r.last != nil {
				if err := noteStop(runDir, domain, r.last.LastRun(), outcome); err != nil {
					log.Warn("the steward may start it again", zap.Error(err))
				}
			}
			protector.DontWait(runDir, domain)
			protector.LeaveError(runDir, domain, err)
			if outcome == primary.TakenOver || outcome == primary.GivenUp || outcome == primary.DomainEnded {
				log.Warn("protection ended", zap.String("outcome", string(outcome)), zap.Error(err))
			}
			if err != nil {
				return decidedError{fmt.Errorf("protect: %s: %w", domain, err)}
			}
			return nil
		},
	}
}

// protecting is the protection of a domain by one process: of the domain that it
// finds, and of the same domain after each of its reboots.
type protecting struct {
	*app
	domain, runDir string
	log            *zap.Logger
	last           *protector.Protector
	since          time.Time // the domain was started again; zero: it was not
}

// settleTime is how long a domain that was started again may take to have all its
// devices.
const settleTime = time.Minute

// once runs a protector. See persist for what waits is.
func (r *protecting) once(ctx context.Context) (_ primary.Outcome, waits bool, _ error) {
	c, err := r.config()
	if err != nil {
		return "", protector.Ran(r.runDir, r.domain), err
	}
	r.runDir = c.RunDir
	backup, err := protector.ChosenBackup(c.RunDir, r.domain)
	if err != nil {
		return "", protector.Left(c, r.domain), err
	}
	p := &protector.Protector{Config: c, Domain: r.domain, Backup: backup, Software: software(), Log: r.log, Watch: notifySystemd}
	if r.last != nil {
		p.Proven = r.last.Proven
	}
	outcome, err := p.Run(ctx)
	if p.Found() || r.last == nil {
		r.last = p
	}
	began := err == nil || outcome != ""
	gone := errors.Is(err, xen.ErrNoDomain)
	switch {
	case began:
	case protector.Starting(r.runDir, r.domain):
		waits = true // it has ended once more, or is not whole yet
	case gone:
	case !r.since.IsZero() && time.Since(r.since) < settleTime:
		waits = true
	case !errors.Is(err, protector.ErrAlready):
		waits = protector.Left(c, r.domain)
	}
	if waits {
		protector.LeaveError(r.runDir, r.domain, fmt.Errorf("%w; it is tried again", err))
	}
	return outcome, waits, err
}

// resume goes on waiting for a domain that the protector before this one waited for.
func (r *protecting) resume(ctx context.Context) {
	c, err := r.config()
	if err != nil {
		return // once says so
	}
	r.runDir = c.RunDir
	p := &protector.Protector{Config: c, Domain: r.domain, Log: r.log}
	if p.Waited() {
		r.last = p
		r.again(ctx, xlft.ErrGuestEnded)
	}
}

// again waits for a domain that ended by itself to be started again, and reports
// whether it was.
func (r *protecting) again(ctx context.Context, why error) bool {
	if r.last == nil {
		return false
	}
	said := false
	again := r.last.Again(ctx, func() {
		if !said {
			said = true
			protector.LeaveError(r.runDir, r.domain, fmt.Errorf("%w; it is protected again once it runs again", why))
			r.log.Warn("the domain has ended; it is protected again once it runs again", zap.Error(why))
		}
		daemon.SdNotify(false, daemon.SdNotifyWatchdog+"\nSTATUS=The domain has ended, and is protected again once it runs again")
	})
	if again {
		r.since = time.Now()
		r.log.Warn("the domain runs again")
	}
	return again
}

// Waits between two attempts to take up what an earlier protector left.
const (
	firstWait   = time.Second
	longestWait = 30 * time.Second
)

// persist runs a protector until its end is decided. While an earlier protector's
// domain waits for a decision and this one can't begin, it tries again: the domain's
// output is held meanwhile, and nobody else would let it out.
func persist(ctx context.Context, log *zap.Logger, run func(context.Context) (_ primary.Outcome, waits bool, _ error)) (primary.Outcome, error) {
	var said xlft.Said
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		outcome, waits, err := run(ctx)
		if !waits || ctx.Err() != nil {
			return outcome, err
		}
		if said.New("", err.Error()) {
			log.Error("the protector can't begin, and what an earlier one left is not decided: it tries again", zap.Error(err))
			daemon.SdNotify(false, "STATUS=The protector can't begin, and tries again: "+err.Error())
		}
		for until := time.Now().Add(wait); time.Now().Before(until) && ctx.Err() == nil; {
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			select {
			case <-time.After(min(wait, firstWait)):
			case <-ctx.Done():
			}
		}
	}
}

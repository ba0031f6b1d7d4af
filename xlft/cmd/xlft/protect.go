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
			runDir := config.DefaultRunDir
			outcome, err := persist(cmd.Context(), log, func() (primary.Outcome, bool, error) {
				c, err := a.config()
				if err != nil {
					return "", protector.Ran(runDir, domain), err
				}
				runDir = c.RunDir
				backup, err := protector.ChosenBackup(c.RunDir, domain)
				if err != nil {
					return "", protector.Left(c, domain), err
				}
				p := &protector.Protector{Config: c, Domain: domain, Backup: backup, Software: software(), Log: log, Watch: notifySystemd}
				outcome, err := p.Run(cmd.Context())
				gone := errors.Is(err, xen.ErrNoDomain) || errors.Is(err, protector.ErrAlready)
				return outcome, err != nil && outcome == "" && !gone && protector.Left(c, domain), err
			})
			protector.LeaveError(runDir, domain, err)
			if outcome == primary.TakenOver || outcome == primary.DomainEnded {
				log.Warn("protection ended", zap.String("outcome", string(outcome)), zap.Error(err))
			}
			if err != nil {
				return decidedError{fmt.Errorf("protect: %s: %w", domain, err)}
			}
			return nil
		},
	}
}

// Waits between two attempts to take up what an earlier protector left.
const (
	firstWait   = time.Second
	longestWait = 30 * time.Second
)

// persist runs a protector until its end is decided. While an earlier protector's
// domain waits for a decision and this one can't begin, it tries again: the domain's
// output is held meanwhile, and nobody else would let it out.
func persist(ctx context.Context, log *zap.Logger, run func() (_ primary.Outcome, waits bool, _ error)) (primary.Outcome, error) {
	var said xlft.Said
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		outcome, waits, err := run()
		if !waits || ctx.Err() != nil {
			return outcome, err
		}
		if said.New("", err.Error()) {
			log.Error("an earlier protector left this domain's output held, and this one can't begin: it tries again", zap.Error(err))
			daemon.SdNotify(false, "STATUS=Output is held, and the protector can't begin: "+err.Error())
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

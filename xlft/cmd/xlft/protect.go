package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/xlft/internal/protector"
	"xlft/xlft/primary"
)

func (a *app) protectCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "protect DOMAIN",
		Short:  "protect a domain in the foreground (what xlft@.service runs)",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.config()
			if err != nil {
				return fmt.Errorf("protect: %w", err)
			}
			log := daemonLog()
			var outcome primary.Outcome
			backup, err := protector.ChosenBackup(c.RunDir, args[0])
			if err == nil {
				p := &protector.Protector{Config: c, Domain: args[0], Backup: backup, Software: software(), Log: log, Watch: notifySystemd}
				outcome, err = p.Run(cmd.Context())
			}
			protector.LeaveError(c.RunDir, args[0], err)
			if outcome == primary.TakenOver || outcome == primary.DomainEnded {
				log.Warn("protection ended", zap.String("outcome", string(outcome)), zap.Error(err))
			}
			if err != nil {
				return fmt.Errorf("protect: %s: %w", args[0], err)
			}
			return nil
		},
	}
}

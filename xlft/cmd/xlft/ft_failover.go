package main

import (
	"github.com/spf13/cobra"

	"xlft/xlft/internal/protector"
)

func (a *app) failoverCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ft-failover DOMAIN",
		Short:   "move a protected domain to its backup now",
		GroupID: "domain",
		Long: `Moves a protected domain to its backup: a last checkpoint is taken and
acknowledged, the output that belongs to it leaves here, then the backup runs the
domain and the copy here is destroyed. It runs unprotected afterwards.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProtected,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.end(cmd, args[0], (*protector.Client).Failover)
		},
	}
}

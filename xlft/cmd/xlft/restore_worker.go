package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/restore"
)

func (a *app) workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "restore-worker",
		Short:  "restore one domain (started by receive)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			if err := restore.Work(daemonLog()); err != nil {
				return fmt.Errorf("restore-worker: %w", err)
			}
			return nil
		},
	}
}

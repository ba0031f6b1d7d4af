package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) configCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check-config [FILE]",
		Short:   "check a configuration file",
		GroupID: "host",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				a.configPath = args[0]
			}
			if _, err := a.config(); err != nil {
				return fmt.Errorf("check-config: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: OK\n", a.configPath)
			return nil
		},
	}
}

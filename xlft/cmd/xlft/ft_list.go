package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/overview"
)

func (a *app) listCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "ft-list [flags]",
		Short:   "list what is protected from here, and what is held for others",
		GroupID: "domain",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-list: %w", err)
			}
			rows, err := overview.Rows(cmd.Context(), cfg.RunDir, cfg.StateDir)
			if err != nil {
				return fmt.Errorf("ft-list: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), rows)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "Name\tRole\tPeer\tState\tEpoch\tGeneration")
			for _, r := range rows {
				if r.Protected && r.NoArbiter != "" {
					r.State += ", no arbiter"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\n", r.Domain, r.Role, r.Peer, r.State, r.Epoch, r.Generation)
			}
			if drained(cfg) {
				defer fmt.Fprintln(cmd.ErrOrStderr(), "This host is drained: it takes no copies until \"xl ft-undrain\".")
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"xlft/savestream"
)

func (a *app) inspectCommand() *cobra.Command {
	var opts savestream.InspectOptions
	c := &cobra.Command{
		Use:     "inspect [flags] FILE",
		Short:   "print a migration stream: xl save file, libxl or libxc stream",
		GroupID: "host",
		Long: `Prints the records of a migration stream: a file that "xl save" wrote, a libxl
stream or a bare libxc stream. "-" reads standard input, also a pipe.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("inspect: %w", err)
				}
				defer f.Close()
				in = f
			}
			if err := savestream.Inspect(cmd.OutOrStdout(), in, opts); err != nil {
				return fmt.Errorf("inspect: %s: %w", args[0], err)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&opts.JSON, "json", false, "print one JSON object a line")
	c.Flags().BoolVar(&opts.Config, "domain-config", false, "print the domain configuration in an xl save file")
	return c
}

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"xlft/xlft/wire"
)

func (a *app) keygenCommand() *cobra.Command {
	var dir, host string
	var force, show bool
	c := &cobra.Command{
		Use:     "keygen",
		Short:   "make this host's key and certificate, and print the fingerprint",
		GroupID: "host",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				dir = "/etc/xlft/identity"
				if c, err := a.config(); err == nil {
					dir = c.Identity
				}
			}
			if show {
				id, err := wire.LoadIdentity(dir)
				if err != nil {
					return fmt.Errorf("keygen: %w", err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), id.Fingerprint)
				return nil
			}
			if host == "" {
				host, _ = os.Hostname()
			}
			fp, err := wire.GenerateIdentity(dir, host, force)
			if err != nil {
				return fmt.Errorf("keygen: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), fp)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "where to put them (default: the configuration's identity)")
	c.Flags().StringVar(&host, "name", "", "name in the certificate (default: the hostname)")
	c.Flags().BoolVar(&force, "force", false, "replace an identity that is there")
	c.Flags().BoolVar(&show, "show", false, "print the fingerprint of the identity that is there")
	return c
}

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"xlft/xlft/config"
	"xlft/xlft/internal/diskcopy"
	"xlft/xlft/internal/store"
)

func (a *app) diskInvalidateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "invalidate DOMAIN/VDEV",
		Short: "give up what this host's copy of a disk has, so that another may overwrite it",
		Long: `Records this host's copy of a disk as inconsistent: no domain runs from it, and the
next session with the host that runs the domain overwrites it. That is for a copy
that the backup refused to overwrite, because it is newer than the primary's, or
because the domain ran from both of them. What only this copy has is lost.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, domain, vdev, err := a.disk(args[0])
			if err == nil {
				copies := &diskcopy.Copies{Config: func() *config.Config { return c }, Store: store.Dir(c.StateDir)}
				err = copies.Invalidate(domain, vdev)
			}
			if err != nil {
				return fmt.Errorf("disk invalidate: %s: %w", args[0], err)
			}
			return nil
		},
	}
}

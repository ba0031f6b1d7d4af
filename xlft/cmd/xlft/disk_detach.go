package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/control"
)

func (a *app) diskDetachCommand() *cobra.Command {
	var user string
	c := &cobra.Command{
		Use:   "detach DOMAIN/VDEV",
		Short: "undo attach",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fail := func(err error) error { return fmt.Errorf("disk detach: %s: %w", args[0], err) }
			c, domain, vdev, err := a.disk(args[0])
			if err != nil {
				return fail(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), diskTimeout)
			defer cancel()
			err = diskClient(c, domain).Detach(ctx, vdev, user)
			if err != nil && !errors.Is(err, control.ErrDown) {
				return fail(err)
			}
			return nil
		},
	}
	userFlag(c, &user)
	return c
}

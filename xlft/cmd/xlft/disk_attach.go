package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
)

// diskTimeout bounds what a hotplug script waits for.
const diskTimeout = 30 * time.Second

func (a *app) diskAttachCommand() *cobra.Command {
	var socket bool
	var who diskserver.User
	c := &cobra.Command{
		Use:   "attach [flags] DOMAIN/VDEV",
		Short: "make a disk a block device of this host, and print which (block-xlft does this)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			where, err := a.attachDisk(cmd.Context(), args[0], socket, who)
			if err != nil {
				return fmt.Errorf("disk attach: %s: %w", args[0], err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), where)
			return nil
		},
	}
	c.Flags().BoolVar(&socket, "socket", false, "serve it on a socket instead, to programs that speak NBD, and print its URI")
	userFlag(c, &who.Name)
	c.Flags().StringVar(&who.VM, "vm", "", "the VM that the user's domain is a run of (block-xlft says it)")
	return c
}

// userFlag adds the flag that names a disk's user.
func userFlag(c *cobra.Command, name *string) {
	c.Flags().StringVar(name, "user", diskserver.Operator, "who uses the disk: the backend's path in xenstore (block-xlft says it)")
}

func (a *app) attachDisk(ctx context.Context, arg string, socket bool, who diskserver.User) (string, error) {
	c, domain, vdev, err := a.disk(arg)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	client := diskClient(c, domain)
	for {
		if err := startDiskServer(ctx, domain); err != nil {
			return "", err
		}
		var where string
		if socket {
			where = "nbd+unix:///" + vdev + "?socket=" + diskserver.ClientSocket(c.RunDir, domain)
			err = client.Open(ctx, vdev)
		} else {
			where, err = client.Attach(ctx, vdev, who)
		}
		if !errors.Is(err, control.ErrDown) {
			return where, err
		}
		// The server that ran has just ended: the next try starts another.
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

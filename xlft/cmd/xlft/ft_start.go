package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/protector"
)

func (a *app) startCommand() *cobra.Command {
	var backup string
	var foreground, quiet bool
	c := &cobra.Command{
		Use:     "ft-start [flags] DOMAIN",
		Short:   "protect a running domain",
		GroupID: "domain",
		Long: `Protects a running domain: looks for every reason why it can't be protected,
copies its memory to the backup while it runs, and returns when the backup holds
the first whole checkpoint. From then on the domain survives the loss of this
host. Nothing is changed if it returns 1.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.start(cmd.Context(), args[0], backup, foreground, progressTo(quiet))
			if err != nil {
				return fmt.Errorf("ft-start: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&backup, "backup", "", "the peer that holds the copy (default: the configuration's)")
	c.Flags().BoolVar(&foreground, "foreground", false, "protect from this process, without systemd, until it is interrupted")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return c
}

func progressTo(quiet bool) io.Writer {
	if quiet {
		return io.Discard
	}
	return os.Stderr
}

func (a *app) start(ctx context.Context, domain, backup string, foreground bool, progress io.Writer) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	name, peer, err := findProblems(ctx, c, domain, backup)
	if err != nil {
		return err
	}
	if foreground {
		p := &protector.Protector{Config: c, Domain: name, Backup: peer.Name, Software: software(), Log: daemonLog(), Watch: notifySystemd}
		_, err := p.Run(ctx)
		return err
	}
	return startUnit(ctx, c, name, peer, progress)
}

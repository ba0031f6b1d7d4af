package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"xlft/xlft/config"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
)

func (a *app) startCommand() *cobra.Command {
	var backup string
	var o startOptions
	var quiet bool
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
			err := a.start(cmd.Context(), args[0], backup, o, progressTo(quiet))
			if err != nil {
				return fmt.Errorf("ft-start: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&backup, "backup", "", "the peer that holds the copy (default: the configuration's)")
	c.Flags().BoolVar(&o.unlessStopped, "unless-stopped", false, "do nothing if an operator ended its protection")
	c.Flags().MarkHidden("unless-stopped")
	c.Flags().BoolVar(&o.foreground, "foreground", false, "protect from this process, without systemd, until it is interrupted")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return c
}

func progressTo(quiet bool) io.Writer {
	if quiet {
		return io.Discard
	}
	return os.Stderr
}

// startOptions say how a protection is started.
type startOptions struct {
	foreground    bool
	unlessStopped bool // it is the steward who starts it
}

func (a *app) start(ctx context.Context, domain, backup string, o startOptions, progress io.Writer) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	name, peer, err := findProblems(ctx, c, domain, backup)
	if left, ok := leftWith(c, err); ok && !o.foreground {
		name, err = left, nil
	}
	if err != nil {
		return err
	}
	if o.foreground {
		protector.MarkStopped(c.RunDir, name, "") // as by protect
		p := &protector.Protector{Config: c, Domain: name, Backup: peer.Name, Software: software(), Log: daemonLog(), Watch: notifySystemd}
		outcome, err := p.Run(ctx)
		return errors.Join(err, noteStop(c.RunDir, name, p.LastRun(), outcome))
	}
	if o.unlessStopped {
		// It may have been ended since the steward looked.
		if err := notStopped(c.RunDir, name); err != nil {
			return err
		}
	}
	return startUnit(ctx, c, name, peer, progress)
}

// leftWith returns the domain that can't be protected for the reasons in err, and whether an
// earlier protector left it undecided: then one has to begin whatever stands against a
// new protection, a dead backup above all. Nobody else would let its output out.
func leftWith(c *config.Config, err error) (domain string, left bool) {
	var ps *problemsError
	if !errors.As(err, &ps) {
		return "", false
	}
	return ps.domain, protector.Left(c, ps.domain)
}

// noteStop marks the run of a domain of which a session has ended, if an operator ended it:
// nobody begins another by himself.
func noteStop(runDir, domain, run string, o primary.Outcome) error {
	if o != primary.Stopped || run == "" {
		return nil
	}
	if err := protector.MarkStopped(runDir, domain, run); err != nil {
		return fmt.Errorf("note that the protection was ended by an operator: %w", err)
	}
	return nil
}

// notStopped returns an error if an operator does not want the run of a domain that is here now
// to be protected.
func notStopped(runDir, domain string) error {
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	d, err := h.Lookup(domain)
	if err != nil {
		return err
	}
	if stopped, _ := protector.Stopped(runDir, domain, protector.Instance(d)); stopped {
		return fmt.Errorf("%s: an operator ended its protection", domain)
	}
	return nil
}

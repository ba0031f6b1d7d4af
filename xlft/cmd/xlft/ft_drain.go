package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"xlft/diskrepl"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
)

// drainMarks are the files of which each says that this host is drained: one survives a
// reboot, one does not.
func drainMarks(c *config.Config) (lasting, untilBoot string) {
	return filepath.Join(c.StateDir, "drained"), filepath.Join(c.RunDir, "drained")
}

// drained reports whether this host takes no replicas. A mark that can't be looked at counts.
func drained(c *config.Config) bool {
	lasting, untilBoot := drainMarks(c)
	for _, mark := range []string{lasting, untilBoot} {
		if _, err := os.Stat(mark); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

func (a *app) drainCommand() *cobra.Command {
	var untilBoot bool
	c := &cobra.Command{
		Use:     "ft-drain [flags]",
		Short:   "move all protected domains off this host, and take no copies",
		GroupID: "host",
		Long: `Prepares this host for maintenance. From now on it takes no copies of other hosts'
domains, and the copies that are here end: their domains run on, unprotected until
another backup takes them (see backups and protect in the configuration). Each domain
that is protected from here is moved to its backup, one after the other.

The exit status is 0 if no domain but dom0 is left here. Otherwise each domain that
is left is named, and why; what was done stays done. It can be called again.

This lasts until "xl ft-undrain", also across a reboot, unless --until-boot is given.`,
		Example: "  xl ft-drain --until-boot && systemctl reboot",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-drain: %w", err)
			}
			if err := a.drain(cmd, c, untilBoot); err != nil {
				return fmt.Errorf("ft-drain: %w", err)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&untilBoot, "until-boot", false, "take copies again after the next boot of this host")
	return c
}

func (a *app) drain(cmd *cobra.Command, c *config.Config, untilBoot bool) error {
	lasting, mark := drainMarks(c)
	if !untilBoot {
		mark = lasting
	}
	if err := diskrepl.MakeDir(filepath.Dir(mark), 0o755); err != nil {
		return err
	}
	if err := store.Replace(mark, []byte(time.Now().Format(time.RFC3339)+"\n")); err != nil {
		return err
	}
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	rows, err := overview.Rows(ctx, c.RunDir, c.StateDir)
	if err != nil {
		return err
	}
	why := map[string]string{} // of domains that can't be moved
	for _, r := range rows {
		if r.Primary == nil {
			continue
		}
		if !r.Protected {
			why[r.Domain] = "its protection is " + r.State
			continue
		}
		fmt.Fprintf(out, "%s: moves to %s\n", r.Domain, r.Peer)
		switch o, err := protector.NewClient(c.RunDir, r.Domain).Failover(ctx); {
		case err != nil:
			why[r.Domain] = err.Error()
		case o != primary.SwitchedOver:
			why[r.Domain] = "its protection ended: " + string(o)
		default:
			fmt.Fprintf(out, "%s: %s\n", r.Domain, outcomes[o])
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	var left []backup.Status
	err = control.Call(ctx, control.Socket(c.RunDir, control.Receiver), "POST", "/evict", nil, &left)
	if err != nil && !errors.Is(err, control.ErrDown) {
		return fmt.Errorf("end the copies that are here: %w", err)
	}
	return stays(why, left)
}

// stays returns what is left on a drained host as an error.
func stays(why map[string]string, replicas []backup.Status) error {
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	here, err := h.Domains()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range replicas {
		if s.State != backup.Ready && s.State != backup.Syncing {
			errs = append(errs, fmt.Errorf("the copy of %s is %v: \"xl ft-status %s\"", s.Domain, s.State, s.Domain))
		}
	}
	for _, d := range here {
		if isReplica(d.Name) {
			continue // it ends
		}
		w := why[d.Name]
		if w == "" {
			w = "it is not protected from here: \"xl migrate\", \"xl shutdown\""
		}
		errs = append(errs, fmt.Errorf("%s stays: %s", d.Name, w))
	}
	return errors.Join(errs...)
}

func (a *app) undrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ft-undrain",
		Short:   "take copies of other hosts' domains again",
		GroupID: "host",
		Long: `Ends what "xl ft-drain" began: this host takes copies of other hosts' domains again.
Their hosts try again by themselves. No domain moves back by itself: "xl ft-failover"
on the host that runs it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-undrain: %w", err)
			}
			lasting, untilBoot := drainMarks(c)
			for _, mark := range []string{lasting, untilBoot} {
				if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("ft-undrain: %w", err)
				}
			}
			return nil
		},
	}
}

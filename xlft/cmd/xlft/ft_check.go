package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"xlft/xlft/config"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/preflight"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

func (a *app) checkCommand() *cobra.Command {
	var asJSON bool
	var backup string
	c := &cobra.Command{
		Use:     "ft-check [flags] DOMAIN",
		Short:   "name every reason why a domain can't be protected now",
		GroupID: "domain",
		Long: `Looks, on this host and on the backup, for every reason why a domain can't be
protected now, and changes nothing. The exit status is 0 if there is none. Then it
names what would make the domain's checkpoints cheaper, if it knows of something.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-check: %w", err)
			}
			_, peer, err := findProblems(cmd.Context(), c, args[0], backup)
			var ps *problemsError
			if err != nil && !errors.As(err, &ps) {
				return fmt.Errorf("ft-check: %w", err)
			}
			if asJSON {
				list := []wire.Problem{}
				if ps != nil {
					list = ps.problems
				}
				if err := printJSON(cmd.OutOrStdout(), list); err != nil {
					return err
				}
			} else if ps == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: can be protected by %s\n", args[0], peer.Name)
				for _, h := range hints(args[0]) {
					fmt.Fprintf(cmd.OutOrStdout(), "  hint: %s\n", h)
				}
			}
			if ps != nil {
				return fmt.Errorf("ft-check: %w", ps)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the reasons as JSON")
	c.Flags().StringVar(&backup, "backup", "", "the peer to look at (default: the configuration's)")
	return c
}

// hints returns what would make a domain's checkpoints cheaper. They are no more than that: what
// can't be found out is left out.
func hints(domain string) []string {
	h, err := xen.Open()
	if err != nil {
		return nil
	}
	defer h.Close()
	d, err := h.Lookup(domain)
	if err != nil {
		return nil
	}
	raw, err := h.Config(d.ID)
	if err != nil {
		return nil
	}
	conf, err := domconf.Parse(raw)
	if err != nil {
		return nil
	}
	info, _ := h.Info() // none: not known
	return conf.Hints(info.CPUs)
}

// problemsError is a domain that can't be protected, with every reason.
type problemsError struct {
	domain   string
	problems []wire.Problem
}

func (e *problemsError) Error() string {
	return e.domain + " can't be protected now:"
}

// findProblems returns the domain's name and its backup if nothing stands against
// protecting it. It holds libxl only while it looks.
func findProblems(ctx context.Context, c *config.Config, domain, backup string) (name string, peer config.Peer, err error) {
	id, err := wire.LoadIdentity(c.Identity)
	if err != nil {
		return "", peer, err
	}
	if peer, err = c.Backup(c.For(domain), backup); err != nil {
		return "", peer, err
	}
	h, err := xen.Open()
	if err != nil {
		return "", peer, err
	}
	defer h.Close()
	d, err := h.Lookup(domain)
	if err != nil {
		return "", peer, err
	}
	if st, err := protector.NewClient(c.RunDir, d.Name).Status(ctx); err == nil {
		return "", peer, fmt.Errorf("%s %w (%v)", d.Name, protector.ErrAlready, st.State)
	}
	check := &preflight.Check{Config: c, Identity: id, Host: h, Software: software(), Instance: protector.Instance(d), Advice: advice}
	ps, err := check.Problems(ctx, d, peer)
	if err != nil {
		return "", peer, fmt.Errorf("%s: %w", d.Name, err)
	}
	if len(ps) > 0 {
		return "", peer, &problemsError{d.Name, ps}
	}
	return d.Name, peer, nil
}

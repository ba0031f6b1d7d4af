package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/protector"
)

func (a *app) disarmCommand() *cobra.Command {
	var lasts time.Duration
	c := &cobra.Command{
		Use:     "ft-disarm --for DURATION [DOMAIN...]",
		Short:   "end the protection of domains for a time",
		GroupID: "domain",
		Long: `Ends the protection of domains as "xl ft-stop" does, for works on the network
between the hosts, say: the domains run on, and nothing that happens to the hosts or
between them moves one. After the time each is protected again by itself, if it still
runs here; "xl ft-start" does that sooner, and "xl ft-stop" ends it for good. A domain
that is started again meanwhile stays unprotected too. Without a domain: all that are
protected from this host, or wait for a backup. They need protect = true.`,
		Example:           "  xl ft-disarm --for 30m",
		ValidArgsFunction: a.completeProtected,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.disarm(cmd, args, lasts); err != nil {
				return fmt.Errorf("ft-disarm: %w", err)
			}
			return nil
		},
	}
	c.Flags().DurationVar(&lasts, "for", 0, "how long, such as 30m or 2h (required)")
	c.MarkFlagRequired("for")
	return c
}

func (a *app) disarm(cmd *cobra.Command, domains []string, lasts time.Duration) error {
	if lasts < time.Second || lasts > protector.LongestDisarm {
		return fmt.Errorf("--for is %v, and is between 1s and %v", lasts, protector.LongestDisarm)
	}
	c, err := a.config()
	if err != nil {
		return err
	}
	if len(domains) == 0 {
		rows, err := overview.Rows(cmd.Context(), c.RunDir, c.StateDir)
		if err != nil {
			return err
		}
		for _, r := range rows {
			// Also those that wait for a backup, and would get it in the middle of the works.
			waits := r.Unprotected != nil && !r.Unprotected.Stopped
			if (r.Role == overview.Primary || waits) && c.For(r.Domain).Protect {
				domains = append(domains, r.Domain)
			}
		}
		if len(domains) == 0 {
			return errors.New("no domain with protect = true is protected from this host, or waits for a backup")
		}
	}
	for _, d := range domains { // before anything is done
		if !c.For(d).Protect {
			return fmt.Errorf("%s has no protect = true: nobody would protect it again. \"xl ft-stop %s\", and then \"xl ft-start %s\"", d, d, d)
		}
	}
	ctx := cmd.Context()
	var failed []error
	for _, d := range domains {
		if ctx.Err() != nil {
			failed = append(failed, fmt.Errorf("%s: %w", d, context.Cause(ctx)))
			continue
		}
		at := time.Now().Add(lasts)
		if err := disarmOne(ctx, c.RunDir, d, at, func() error { return a.stop(cmd, d) }); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", d, err))
			continue
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: is protected again at %s; \"xl ft-start %s\" does it now\n", d, at.Format(time.DateTime), d)
	}
	return errors.Join(failed...)
}

// disarmOne ends the protection of a domain until a time. That it ends by itself is noted
// before that too: an operator who is cut off in the middle does not leave the domain
// unprotected for good.
func disarmOne(ctx context.Context, runDir, domain string, at time.Time, stop func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	was := protector.Again(runDir, domain)
	if err := protector.MarkAgain(runDir, domain, at); err != nil {
		return err
	}
	if err := stop(); err != nil {
		if ctx.Err() == nil { // else it may still end
			err = errors.Join(err, protector.MarkAgain(runDir, domain, was))
		}
		return err
	}
	// A protector that was just starting has removed the note.
	return protector.MarkAgain(runDir, domain, at)
}

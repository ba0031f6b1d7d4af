package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xlft/xlft/config"
	"xlft/xlft/internal/overview"
)

// Words that ft-wait takes beside the states themselves.
const (
	waitProtected   = "protected"
	waitUnprotected = "unprotected"
)

// waitStates are what ft-wait takes: those that last, and that somebody may wait for.
var waitStates = []string{waitProtected, waitUnprotected, "syncing", "ready", "blocked", "claiming", overview.TookOver, overview.StoppedHere, overview.GivenUp}

// waitEvery is the time between two looks.
const waitEvery = 500 * time.Millisecond

var errWaited = errors.New("it did not come to that")

func (a *app) waitCommand() *cobra.Command {
	var timeout time.Duration
	var quiet bool
	c := &cobra.Command{
		Use:     "ft-wait [flags] DOMAIN STATE",
		Short:   "wait until the protection of a domain is in a state",
		GroupID: "domain",
		Long: `Waits until the protection of a domain is in a state, on this host, and prints the
states that it goes through on the way. STATE is one that "xl ft-status" shows, or

  protected    it would survive the loss of its host now, seen from either host
  unprotected  it would not

The exit status is 0 as soon as it is, and 1 when the time is over.`,
		Example:           "  xl create web1.cfg && xl ft-wait --timeout 5m web1 protected",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeWait,
		RunE: func(cmd *cobra.Command, args []string) error {
			fail := func(err error) error { return fmt.Errorf("ft-wait: %s: %w", args[0], err) }
			c, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-wait: %w", err)
			}
			if !slices.Contains(waitStates, args[1]) {
				return fmt.Errorf("ft-wait: no state to wait for is called %q: %s", args[1], strings.Join(waitStates, ", "))
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("after %v %w", timeout, errWaited))
				defer cancel()
			}
			w := progressTo(quiet)
			err = waitFor(ctx, c, args[0], args[1], func(state string) { fmt.Fprintf(w, "%s: %s\n", args[0], state) })
			if err != nil {
				return fail(err)
			}
			return nil
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "wait no longer than this, such as 90s or 5m; 0 is no limit")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no states")
	return c
}

// waitFor returns when a domain is as wanted. Said is called with each state that is new.
func waitFor(ctx context.Context, c *config.Config, domain, want string, said func(string)) error {
	t := time.NewTicker(waitEvery)
	defer t.Stop()
	last := ""
	for {
		rows, err := overview.Rows(ctx, c.RunDir, c.StateDir)
		r := overview.Row{Domain: domain, State: "unknown"}
		for _, x := range rows {
			if x.Domain == domain {
				r = x
			}
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w; it is %s", context.Cause(ctx), last)
		case err != nil: // a daemon that starts or ends, say
			if s := err.Error(); s != last {
				last = s
				said(last)
			}
		case want == waitProtected && r.Protected, want == waitUnprotected && !r.Protected,
			want == r.State && want != waitProtected && want != waitUnprotected:
			return nil
		case r.State != last:
			last = r.State
			said(last)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
	"xlft/xlft/primary"
)

func (a *app) stopCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ft-stop DOMAIN",
		Short:   "end the protection of a domain, which runs on",
		GroupID: "domain",
		Long: `Ends the protection of a domain: the backup destroys its copy, what was held of
the domain's output is let out, and the domain runs on. Returns when that is so.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProtected,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.end(cmd, args[0], (*protector.Client).Stop)
		},
	}
}

// end ends a session, and prints how it ended.
func (a *app) end(cmd *cobra.Command, domain string, how func(*protector.Client, context.Context) (primary.Outcome, error)) error {
	fail := func(err error) error { return fmt.Errorf("%s: %s: %w", cmd.Name(), domain, err) }
	c, err := a.config()
	if err != nil {
		return fmt.Errorf("%s: %w", cmd.Name(), err)
	}
	outcome, err := how(protector.NewClient(c.RunDir, domain), cmd.Context())
	if errors.Is(err, control.ErrDown) {
		return fail(fmt.Errorf("is not protected from this host (protector %w)", err))
	}
	if err != nil {
		return fail(err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", domain, outcomes[outcome])
	return nil
}

// outcomes says what became of a domain whose session ended without an error.
var outcomes = map[primary.Outcome]string{
	primary.Stopped:      "stopped: it runs on here, unprotected",
	primary.SwitchedOver: "runs on its backup now, unprotected",
}

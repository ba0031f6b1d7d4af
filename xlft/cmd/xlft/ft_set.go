package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
)

func (a *app) setCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "ft-set [flags] DOMAIN [KEY=VALUE]...",
		Short:   "change when the checkpoints of a protected domain are taken",
		GroupID: "domain",
		Long: `Changes when the checkpoints of a domain that is protected from this host are
taken, at once and without an interruption of its protection, and prints what is in
effect then. Without KEY=VALUE it changes nothing. If one of them is refused, none is
taken.

The keys are those of the configuration, and mean the same:

  mode              what starts a checkpoint: "event", the domain's output; "strict",
                    each output, and the domain stays suspended until the backup has
                    the checkpoint; "interval", time alone
  epoch_max         the longest time between two checkpoints. Where the mode alone is
                    changed, the default of epoch_max changes with it
  epoch_min         the shortest time between two that the domain runs ("event" only)
  run_share         the share of its time that it runs at least ("event" only)
  event_window_max  but output waits no longer than this for run_share ("event" only)
  dirty_max         end an epoch after so many dirty pages; 0 is no limit

Like "xl vcpu-set" it changes what runs, and not the configuration. It lasts until the
protection ends: when the domain reboots, or a protector that died is started again,
the configuration counts.`,
		Example:           "  xl ft-set web1 mode=interval epoch_max=100ms",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSet,
		RunE: func(cmd *cobra.Command, args []string) error {
			domain := args[0]
			fail := func(err error) error { return fmt.Errorf("ft-set: %s: %w", domain, err) }
			c, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-set: %w", err)
			}
			p, err := protector.NewClient(c.RunDir, domain).Pace(cmd.Context(), args[1:])
			if errors.Is(err, control.ErrDown) {
				return fail(fmt.Errorf("is not protected from this host (protector %w)", err))
			}
			if err != nil {
				return fail(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), p)
			}
			return printPacing(cmd.OutOrStdout(), p)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printPacing prints a pacing as the configuration has it.
func printPacing(out io.Writer, p xlft.Pacing) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(key string, value any, unused bool) {
		note := ""
		if unused {
			note = "\tnot used in this mode"
		}
		fmt.Fprintf(w, "%s\t%v%s\n", key, value, note)
	}
	only := p.Mode != xlft.ModeEvent
	line("mode", p.Mode, false)
	line("epoch_min", p.EpochMin, only)
	line("epoch_max", p.EpochMax, false)
	line("event_window_max", p.WindowMax, only)
	line("run_share", p.RunShare, only)
	line("dirty_max", p.DirtyMax, false)
	return w.Flush()
}

// completeSet completes a protected domain, then keys, then modes.
func (a *app) completeSet(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeProtected(cmd, args, word)
	}
	var words []string
	if strings.HasPrefix(word, "mode=") {
		for _, m := range config.Modes {
			words = append(words, "mode="+string(m))
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
	for _, key := range config.PacingKeys {
		if !slices.ContainsFunc(args[1:], func(w string) bool { return strings.HasPrefix(w, key+"=") }) {
			words = append(words, key+"=")
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

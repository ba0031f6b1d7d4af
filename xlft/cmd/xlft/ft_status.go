package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/overview"
	"xlft/xlft/primary"
)

// errNoArbiter makes ft-status return exitNoArbiter.
var errNoArbiter = errors.New("protected, but no arbiter could decide if a host or the network failed now")

// errUnprotected makes ft-status return 1.
var errUnprotected = errors.New("not protected")

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "ft-status [flags] DOMAIN",
		Short:   "show the protection of a domain",
		GroupID: "domain",
		Long: `Shows the protection of a domain, on either host. The exit status is 0 if the
domain is protected: if it would survive the loss of its host now. It is 2 if it is
protected, but the arbiter of a host could not decide now: a fence agent fails, say;
see arbiter.check_interval. It is 1 if the domain is not protected, whatever the
reason.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProtected,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-status: %w", err)
			}
			rows, err := overview.Rows(cmd.Context(), cfg.RunDir, cfg.StateDir)
			if err != nil {
				return fmt.Errorf("ft-status: %w", err)
			}
			for _, r := range rows {
				if r.Domain == args[0] {
					if asJSON {
						err = printJSON(cmd.OutOrStdout(), r)
					} else {
						err = printRow(cmd.OutOrStdout(), r)
					}
					switch {
					case err != nil:
						return err
					case r.Protected && r.NoArbiter != "":
						return fmt.Errorf("ft-status: %s: %w: %s", r.Domain, errNoArbiter, r.NoArbiter)
					case r.Protected:
						return nil
					}
					return fmt.Errorf("ft-status: %s: %w (%s)", r.Domain, errUnprotected, r.State)
				}
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), overview.Row{Domain: args[0], Role: overview.None, State: "unknown"}); err != nil {
					return err
				}
			}
			return fmt.Errorf("ft-status: %s: %w: nothing is known of it on this host", args[0], errUnprotected)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printRow prints a row in full, one fact a line.
func printRow(out io.Writer, r overview.Row) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(k, format string, args ...any) { fmt.Fprintf(w, k+":\t"+format+"\n", args...) }
	line("Domain", "%s", r.Domain)
	line("Role of this host", "%s", r.Role)
	if s := r.Primary; s != nil && s.PeerAddress != "" {
		line("Peer", "%s, at %s", r.Peer, s.PeerAddress)
	} else {
		line("Peer", "%s", r.Peer)
	}
	for _, p := range r.Paths {
		if p.Up {
			line("  path "+p.Address, "whole")
		} else {
			line("  path "+p.Address, "broken, since %s: %s", ago(p.Since), p.Error)
		}
	}
	text := "no"
	switch {
	case r.Primary != nil && !r.Primary.Lacking.IsZero() && !r.Protected:
		text += ", since " + ago(r.Primary.Lacking)
	case r.Protected && r.NoArbiter != "":
		text = "yes, but no arbiter"
	case r.Protected:
		text = "yes"
	}
	line("Protected", "%s", text)
	line("State", "%s", r.State)
	if r.State == primary.Blocked.String() || r.State == backup.Claiming.String() || r.State == overview.TakingOver {
		line("Decide by", "xl ft-resolve %s", r.Domain)
	}
	line("Generation", "%d", r.Generation)
	if u := r.Unprotected; u != nil {
		line("Unprotected since", "%s", ago(u.Since))
		switch {
		case u.Stopped:
			line("Protect by", "xl ft-start %s", r.Domain)
			if !u.Until.IsZero() {
				line("Protected again", "in %v", max(0, time.Until(u.Until)).Round(time.Second))
			}
		case u.Trying != "":
			line("Being tried", "%s", u.Trying)
		case !u.Next.IsZero():
			line("Tried again", "in %v", max(0, time.Until(u.Next)).Round(time.Second))
		}
		if u.Why != "" {
			line("Last error", "%s", strings.ReplaceAll(u.Why, "\n", "; "))
		}
	}
	if s := r.Primary; s != nil {
		printPrimary(line, s)
	}
	if s := r.Backup; s != nil {
		line("Arbiter", "%s%s", s.Arbiter, checked(s.Health))
		line("Newest epoch", "%d, acked %s", s.Epoch, ago(s.LastAck))
		line("Restored", "epoch %d, each in %v (median)", s.Restored, round(s.RestoreMedian))
		line("Received", "%d MiB", s.Bytes>>20)
		if s.LastError != "" {
			line("Last error", "%s", s.LastError)
		}
	}
	return w.Flush()
}

// printPrimary prints what only a primary knows.
func printPrimary(line func(key, format string, args ...any), s *primary.Status) {
	line("Arbiter", "%s%s", s.Arbiter, checked(s.Health))
	line("Newest epoch", "%d, acked %s", s.Epoch, ago(s.LastAck))
	line("Checkpoints", "%d, %d pages, %d MiB sent", s.Checkpoints, s.PagesSent, s.BytesSent>>20)
	if reasons := reasons(s); reasons != "" {
		line("  started by", "%s", reasons)
	}
	mode := string(s.Pacing.Mode)
	switch s.Pacing.Mode {
	case xlft.ModeEvent:
		mode += fmt.Sprintf(", output waits until the domain has run for %v, epochs of at most %v", round(s.Window), s.Pacing.EpochMax)
	default:
		mode += fmt.Sprintf(", epochs of at most %v", s.Pacing.EpochMax)
	}
	line("Mode", "%s", mode)
	if s.Watching != "" && s.Pacing.Mode != xlft.ModeInterval {
		line("Output noticed by", "%s", s.Watching)
	}
	line("Pause", "median %v, worst %v", round(s.PauseMedian.Total), round(s.PauseWorst.Total))
	parts := fmt.Sprintf("suspend %v, seal %v, capture %v, ", round(s.PauseMedian.Suspend), round(s.PauseMedian.Seal), round(s.PauseMedian.Capture))
	if s.PauseMedian.Ack > 0 {
		parts += fmt.Sprintf("ack %v, ", round(s.PauseMedian.Ack))
	}
	line("  of the median", "%sresume %v", parts, round(s.PauseMedian.Resume))
	line("Ack after resume", "median %v", round(s.AckMedian))
	line("Per checkpoint", "median %d KiB, as %d KiB; %d MiB of pages are kept for that", s.BytesMedian>>10, s.WireMedian>>10, s.PageCache>>20)
	if s.Holds > 0 {
		now := ""
		if s.Holding {
			now = "now, "
		}
		line("Held for the backup", "%s%d times, %v in all", now, s.Holds, round(s.HeldTime))
	}
	if s.HeldLimit > 0 { // a domain without a network has no gate
		line("Output held", "%d of %d KiB", s.HeldBytes>>10, s.HeldLimit>>10)
	}
	for _, d := range s.Disks {
		text := "in sync"
		switch {
		case d.Synced:
		case d.Known:
			text = fmt.Sprintf("sending what was written since, %d of %d MiB", d.Compared>>20, d.Total>>20)
		default:
			text = fmt.Sprintf("copying, %d of %d MiB compared, %d MiB differed", d.Compared>>20, d.Total>>20, d.Sent>>20)
		}
		line("Disk "+d.VDev, "%s", text)
	}
	if s.State == primary.Syncing {
		line("First copy", "%d of about %d MiB", s.SyncBytes>>20, s.SyncTotal>>20)
	}
	if s.LastError != "" {
		line("Last error", "%s", s.LastError)
	}
}

// checked says when the arbiter was last asked whether it could decide, and what it
// said.
func checked(h xlft.Health) string {
	switch {
	case h.At.IsZero():
		return ""
	case h.Error != "":
		return fmt.Sprintf(", could not decide (asked %v ago): %s", time.Since(h.At).Round(time.Second), h.Error)
	}
	return fmt.Sprintf(", could decide (asked %v ago)", time.Since(h.At).Round(time.Second))
}

// reasons lists what asked for checkpoints, the most frequent first.
func reasons(s *primary.Status) string {
	all := slices.SortedFunc(maps.Keys(s.Reasons), func(a, b primary.Why) int {
		return cmp.Or(cmp.Compare(s.Reasons[b], s.Reasons[a]), cmp.Compare(a, b))
	})
	var words []string
	for _, why := range all {
		words = append(words, fmt.Sprintf("%s %d", why, s.Reasons[why]))
	}
	return strings.Join(words, ", ")
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return round(time.Since(t)).String() + " ago"
}

func round(d time.Duration) time.Duration {
	if d > time.Minute {
		return d.Round(time.Second)
	}
	return d.Round(100 * time.Microsecond)
}

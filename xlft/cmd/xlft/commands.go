package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"xlft/savestream"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
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
			return a.end(cmd, args[0], "/stop", "stopped: it runs on here, unprotected")
		},
	}
}

func (a *app) failoverCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ft-failover DOMAIN",
		Short:   "move a protected domain to its backup now",
		GroupID: "domain",
		Long: `Moves a protected domain to its backup: a last checkpoint is taken and
acknowledged, the output that belongs to it leaves here, then the backup runs the
domain and the copy here is destroyed. It runs unprotected afterwards.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProtected,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.end(cmd, args[0], "/failover", "runs on its backup now, unprotected")
		},
	}
}

// end sends a request that ends a session, and waits for the end.
func (a *app) end(cmd *cobra.Command, domain, what, word string) error {
	fail := func(err error) error { return fmt.Errorf("%s: %s: %w", name(cmd), domain, err) }
	c, err := a.config()
	if err != nil {
		return fmt.Errorf("%s: %w", name(cmd), err)
	}
	err = control.Call(cmd.Context(), control.Socket(c.RunDir, domain), "POST", what, nil, nil)
	if errors.Is(err, control.ErrDown) {
		return fail(fmt.Errorf("is not protected from this host (protector %w)", err))
	}
	if err != nil {
		return fail(err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", domain, word)
	return nil
}

// errUnprotected makes ft-status return 1.
var errUnprotected = errors.New("not protected")

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "ft-status [flags] DOMAIN",
		Short:   "show the protection of a domain",
		GroupID: "domain",
		Long: `Shows the protection of a domain, on either host. The exit status is 0 if the
domain is protected: if it would survive the loss of its host now. It is 1 if it
is not, whatever the reason.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProtected,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-status: %w", err)
			}
			rows, err := a.rows(cmd, cfg.RunDir, cfg.StateDir)
			if err != nil {
				return fmt.Errorf("ft-status: %w", err)
			}
			for _, r := range rows {
				if r.Domain == args[0] {
					if asJSON {
						err = printJSON(cmd.OutOrStdout(), r)
					} else {
						err = r.print(cmd.OutOrStdout())
					}
					if err != nil || r.Protected {
						return err
					}
					return fmt.Errorf("ft-status: %s: %w (%s)", r.Domain, errUnprotected, r.State)
				}
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), row{Domain: args[0], Role: "none", State: "unknown"}); err != nil {
					return err
				}
			}
			return fmt.Errorf("ft-status: %s: %w: nothing is known of it on this host", args[0], errUnprotected)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) listCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "ft-list [flags]",
		Short:   "list what is protected from here, and what is held for others",
		GroupID: "domain",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-list: %w", err)
			}
			rows, err := a.rows(cmd, cfg.RunDir, cfg.StateDir)
			if err != nil {
				return fmt.Errorf("ft-list: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), rows)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "Name\tRole\tPeer\tState\tEpoch\tGeneration")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\n", r.Domain, r.Role, r.Peer, r.State, r.Epoch, r.Generation)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// row is what one host knows of a domain.
type row struct {
	Domain     string                `json:"domain"`
	Role       string                `json:"role"` // "primary", "backup", "owner", "yielded"
	Peer       string                `json:"peer"`
	State      string                `json:"state"`
	Protected  bool                  `json:"protected"`
	Epoch      uint64                `json:"epoch"`
	Generation uint64                `json:"generation"`
	Primary    *primary.Status       `json:"primary,omitempty"`
	Standby    *backup.StandbyStatus `json:"standby,omitempty"`
}

// rows asks every daemon of this host, and the records for what no daemon
// looks after.
func (a *app) rows(cmd *cobra.Command, runDir, stateDir string) ([]row, error) {
	seen := map[string]row{}
	names, err := control.Names(runDir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		var st primary.Status
		if err := control.Call(cmd.Context(), control.Socket(runDir, n), "GET", "/status", nil, &st); err != nil {
			continue // ended meanwhile, or left behind by a crash
		}
		seen[n] = row{n, "primary", st.Peer, st.State, st.Protected, st.Epoch, st.Generation, &st, nil}
	}
	var all []backup.StandbyStatus
	if err := control.Call(cmd.Context(), control.Socket(runDir, control.Receiver), "GET", "/standbys", nil, &all); err != nil && !errors.Is(err, control.ErrDown) {
		return nil, err
	}
	for _, s := range all {
		seen[s.Domain] = row{s.Domain, "backup", s.Peer, s.State, s.State == backup.Ready.String(), s.Epoch, s.Generation, nil, &s}
	}
	recs, err := store.Dir(stateDir).All()
	if err != nil {
		return nil, err
	}
	for n, r := range recs {
		if _, ok := seen[n]; ok {
			continue
		}
		switch r.Role {
		case xlft.HostOwner:
			state := "took-over"
			if r.Handed {
				state = "taking-over" // or a receiver died at it: the primary's question settles that
			}
			seen[n] = row{Domain: n, Role: "owner", Peer: r.Peer, State: state, Generation: r.Generation}
		case xlft.HostYielded:
			seen[n] = row{Domain: n, Role: "yielded", Peer: r.Peer, State: "given-up", Generation: r.Generation}
		case xlft.HostPrimary:
			if r.Exposed {
				seen[n] = row{Domain: n, Role: "primary", Peer: r.Peer, State: "protector-dead", Generation: r.Generation}
			}
		}
	}
	rows := make([]row, 0, len(seen))
	for _, r := range seen {
		rows = append(rows, r)
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].Domain < rows[j].Domain })
	return rows, nil
}

func (r row) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(k string, format string, args ...any) { fmt.Fprintf(w, k+":\t"+format+"\n", args...) }
	line("Domain", "%s", r.Domain)
	line("Role of this host", "%s", r.Role)
	line("Peer", "%s", r.Peer)
	word := "no"
	if r.Protected {
		word = "yes"
	}
	line("Protected", "%s", word)
	line("State", "%s", r.State)
	line("Generation", "%d", r.Generation)
	if s := r.Primary; s != nil {
		line("Arbiter", "%s", s.Arbiter)
		line("Newest epoch", "%d, acked %s", s.Epoch, ago(s.LastAck))
		line("Checkpoints", "%d, %d pages, %d MiB sent", s.Checkpoints, s.PagesSent, s.BytesSent>>20)
		line("Pause", "median %v, worst %v", round(s.PauseMedian.Total), round(s.PauseWorst.Total))
		line("  of the median", "suspend %v, seal %v, capture %v, resume %v", round(s.PauseMedian.Suspend), round(s.PauseMedian.Seal), round(s.PauseMedian.Capture), round(s.PauseMedian.Resume))
		line("Ack after resume", "median %v", round(s.AckMedian))
		line("Per checkpoint", "median %d KiB", s.BytesMedian>>10)
		if s.HeldLimit > 0 { // a domain without a network has no gate
			line("Output held", "%d of %d KiB", s.HeldBytes>>10, s.HeldLimit>>10)
		}
		for _, d := range s.Disks {
			word := "in sync"
			switch {
			case d.Synced:
			case d.Known:
				word = fmt.Sprintf("sending what was written since, %d of %d MiB", d.Compared>>20, d.Total>>20)
			default:
				word = fmt.Sprintf("copying, %d of %d MiB compared, %d MiB differed", d.Compared>>20, d.Total>>20, d.Sent>>20)
			}
			line("Disk "+d.VDev, "%s", word)
		}
		if s.State == primary.Seeding.String() {
			line("First copy", "%d of about %d MiB", s.SeedBytes>>20, s.SeedTotal>>20)
		}
		if s.LastError != "" {
			line("Last error", "%s", s.LastError)
		}
	}
	if s := r.Standby; s != nil {
		line("Arbiter", "%s", s.Arbiter)
		line("Newest epoch", "%d, acked %s", s.Epoch, ago(s.LastAck))
		line("Received", "%d MiB", s.Bytes>>20)
	}
	return w.Flush()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return round(time.Since(t)).String() + " ago"
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (a *app) checkCommand() *cobra.Command {
	var asJSON bool
	var backup string
	c := &cobra.Command{
		Use:     "ft-check [flags] DOMAIN",
		Short:   "name every reason why a domain can't be protected now",
		GroupID: "domain",
		Long: `Looks, on this host and on the backup, for every reason why a domain can't be
protected now, and changes nothing. The exit status is 0 if there is none.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.config()
			if err != nil {
				return fmt.Errorf("ft-check: %w", err)
			}
			id, err := wire.LoadIdentity(cfg.Identity)
			if err != nil {
				return fmt.Errorf("ft-check: %w", err)
			}
			peer, err := peerOf(cfg, cfg.For(args[0]), backup)
			if err != nil {
				return fmt.Errorf("ft-check: %w", err)
			}
			_, err = preflight(cmd.Context(), cfg, id, args[0], peer)
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

func (a *app) keygenCommand() *cobra.Command {
	var dir, host string
	var force, show bool
	c := &cobra.Command{
		Use:     "keygen",
		Short:   "make this host's key and certificate, and print the fingerprint",
		GroupID: "host",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				dir = "/etc/xlft/identity"
				if c, err := a.config(); err == nil {
					dir = c.Identity
				}
			}
			if show {
				id, err := wire.LoadIdentity(dir)
				if err != nil {
					return fmt.Errorf("keygen: %w", err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), id.Fingerprint)
				return nil
			}
			if host == "" {
				host, _ = os.Hostname()
			}
			fp, err := wire.GenerateIdentity(dir, host, force)
			if err != nil {
				return fmt.Errorf("keygen: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), fp)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "where to put them (default: the configuration's identity)")
	c.Flags().StringVar(&host, "name", "", "name in the certificate (default: the hostname)")
	c.Flags().BoolVar(&force, "force", false, "replace an identity that is there")
	c.Flags().BoolVar(&show, "show", false, "print the fingerprint of the identity that is there")
	return c
}

func (a *app) inspectCommand() *cobra.Command {
	var opts savestream.InspectOptions
	c := &cobra.Command{
		Use:     "inspect [flags] FILE",
		Short:   "print a migration stream: xl save file, libxl or libxc stream",
		GroupID: "host",
		Long: `Prints the records of a migration stream: a file that "xl save" wrote, a libxl
stream or a bare libxc stream. "-" reads standard input, also a pipe.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("inspect: %w", err)
				}
				defer f.Close()
				in = f
			}
			if err := savestream.Inspect(cmd.OutOrStdout(), in, opts); err != nil {
				return fmt.Errorf("inspect: %s: %w", args[0], err)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&opts.JSON, "json", false, "print one JSON object a line")
	c.Flags().BoolVar(&opts.Config, "domain-config", false, "print the domain configuration in an xl save file")
	return c
}

func (a *app) configCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check-config [FILE]",
		Short:   "check a configuration file",
		GroupID: "host",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				a.configPath = args[0]
			}
			if _, err := a.config(); err != nil {
				return fmt.Errorf("check-config: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", a.configPath)
			return nil
		},
	}
}

// manCommand writes the man pages; "make install" calls it.
func (a *app) manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "write man pages, made from these help texts",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error {
			dir := filepath.Clean(args[0])
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: software(), Manual: "xlft"}, dir)
		},
	}
}

func (a *app) completeDomains(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	h, err := xen.Open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer h.Close()
	all, _ := h.Domains()
	var names []string
	for _, d := range all {
		names = append(names, d.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeProtected(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := a.config()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := control.Names(c.RunDir)
	return names, cobra.ShellCompDirectiveNoFileComp
}

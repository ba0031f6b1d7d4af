package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"xlft/xlft/config"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

func (a *app) listCommand() *cobra.Command {
	var asJSON, all bool
	c := &cobra.Command{
		Use:     "ft-list [flags]",
		Short:   "list what is protected from here, and what is held for others",
		GroupID: "domain",
		Long: `Lists what this host knows of domains: those that are protected from here, those of
which it holds a copy, those that it took over. With --all each peer of the
configuration is asked too, and the memory that is free on each host is shown; the exit
status is 1 if one gave no answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.list(cmd, asJSON, all); err != nil {
				return fmt.Errorf("ft-list: %w", err)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&all, "all", false, "ask the peers too")
	return c
}

func (a *app) list(cmd *cobra.Command, asJSON, all bool) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if all {
		return listAll(cmd, cfg, asJSON)
	}
	rows, err := overview.Rows(cmd.Context(), cfg.RunDir, cfg.StateDir)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), rows)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "Name\tRole\tPeer\tState\tEpoch\tGeneration")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\n", r.Domain, r.Role, r.Peer, stateOf(r.State, r.Protected, r.NoArbiter), r.Epoch, r.Generation)
	}
	if drained(cfg) {
		defer fmt.Fprintln(cmd.ErrOrStderr(), "This host is drained: it takes no copies until \"xl ft-undrain\".")
	}
	return w.Flush()
}

func stateOf(state string, protected bool, noArbiter string) string {
	if protected && noArbiter != "" {
		state += ", no arbiter"
	}
	return state
}

// A listedHost is a host, or why it could not be asked.
type listedHost struct {
	wire.ListResult
	Error string `json:"error,omitempty"`
}

// listPatience is how long a peer may take to answer.
const listPatience = 2 * overview.Patience

func listAll(cmd *cobra.Command, cfg *config.Config, asJSON bool) error {
	id, err := wire.LoadIdentity(cfg.Identity)
	if err != nil {
		return err
	}
	own, err := listHere(cmd.Context(), cfg, askXen)
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(cfg.Peers))
	hosts := make([]listedHost, 1+len(names))
	hosts[0].ListResult = own
	ask, cancel := context.WithTimeout(cmd.Context(), listPatience)
	defer cancel()
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			p, h := cfg.Peers[name], &hosts[i+1]
			if err := wire.Ask(ask, id.Dialer(p.Addresses, p.Fingerprint), software(), wire.TypeList, nil, wire.TypeListResult, &h.ListResult); err != nil {
				h.ListResult, h.Error = wire.ListResult{}, err.Error()
			}
			h.Host = name // as it is called here
		})
	}
	wg.Wait()
	return printHosts(cmd.OutOrStdout(), hosts, asJSON)
}

// printHosts prints what each host knows. Those that gave no answer make an error.
func printHosts(out io.Writer, hosts []listedHost, asJSON bool) error {
	var silent []error
	for _, h := range hosts {
		if h.Error != "" {
			silent = append(silent, fmt.Errorf("%s gives no answer: %s", h.Host, wire.Printable(h.Error)))
		}
	}
	if asJSON {
		return errors.Join(append([]error{printJSON(out, hosts)}, silent...)...)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "Host\tFree MiB\tName\tRole\tPeer\tState\tEpoch\tGeneration")
	for _, h := range hosts {
		free := fmt.Sprint(h.FreeKiB >> 10)
		if h.Error != "" {
			free = "?"
		}
		if h.Drained {
			free += ", drained"
		}
		if len(h.Domains) == 0 {
			fmt.Fprintf(w, "%s\t%s\t-\n", h.Host, free)
		}
		for _, d := range h.Domains {
			p := wire.Printable // what a peer says is a table's cell, and no more
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\n", h.Host, free, p(d.Domain), p(d.Role), p(d.Peer), p(stateOf(d.State, d.Protected, d.NoArbiter)), d.Epoch, d.Generation)
		}
	}
	return errors.Join(append([]error{w.Flush()}, silent...)...)
}

// listHere is what this host answers to those who ask; info asks the hypervisor.
func listHere(ctx context.Context, cfg *config.Config, info func() (xen.Info, error)) (wire.ListResult, error) {
	l := wire.ListResult{Host: cfg.Name, Drained: drained(cfg), Domains: []wire.ListDomain{}}
	rows, err := overview.Rows(ctx, cfg.RunDir, cfg.StateDir)
	if err != nil {
		return l, err
	}
	for _, r := range rows {
		l.Domains = append(l.Domains, wire.ListDomain{Domain: r.Domain, Role: string(r.Role), Peer: r.Peer, State: r.State, Protected: r.Protected,
			NoArbiter: short(r.NoArbiter), Epoch: r.Epoch, Generation: r.Generation})
	}
	// A hypervisor that does not answer hides nothing of what is protected.
	if i, err := info(); err == nil {
		l.FreeKiB = i.FreeKiB
	}
	return l, nil
}

// short leaves room in the answer for the other domains.
func short(s string) string {
	const most = 500
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// askXen asks the hypervisor what this host can do.
func askXen() (xen.Info, error) {
	h, err := xen.Open()
	if err != nil {
		return xen.Info{}, err
	}
	defer h.Close()
	return h.Info()
}

// fresh keeps what a peer is told for so long: whoever asks often costs this host little.
const fresh = time.Second

// lister answers peers.
func lister(config func() *config.Config, info func() (xen.Info, error)) func(context.Context) (wire.ListResult, error) {
	var mu sync.Mutex
	var last wire.ListResult
	var at time.Time
	return func(ctx context.Context) (wire.ListResult, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) < fresh {
			return last, nil
		}
		l, err := listHere(ctx, config(), info)
		if err == nil {
			last, at = l, time.Now()
		}
		return l, err
	}
}

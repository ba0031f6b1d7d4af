package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/xlft"

	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskcopy"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/store"
	"xlft/xlft/wire"
)

func (a *app) diskCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "disk",
		Short:   "the disks of domains that xlft keeps copies of",
		GroupID: "host",
		Long: `Serves the disks of domains as network block devices of this host, so that what
is written to them can be copied. A domain's configuration for xl names such a
disk as "script=block-xlft,vdev=xvda,access=rw,target=DOMAIN/xvda"; where it is
on a host, that host's configuration of xlft says.`,
	}
	c.AddCommand(a.diskServeCommand(), a.diskAttachCommand(), a.diskDetachCommand(), a.diskStatusCommand(), a.diskPromoteCommand())
	return c
}

// cutDisk reads DOMAIN/VDEV.
func cutDisk(s string) (domain, vdev string, err error) {
	i := strings.LastIndexByte(s, '/')
	if i < 1 || i == len(s)-1 {
		return "", "", fmt.Errorf("%q is no DOMAIN/VDEV such as \"web1/xvda\"", s)
	}
	return s[:i], s[i+1:], nil
}

// disk returns the configuration, and what DOMAIN/VDEV names.
func (a *app) disk(arg string) (c *config.Config, domain, vdev string, err error) {
	if domain, vdev, err = cutDisk(arg); err != nil {
		return nil, "", "", err
	}
	c, err = a.config()
	return c, domain, vdev, err
}

// diskClient asks the server of a domain's disks.
func diskClient(c *config.Config, domain string) *diskserver.Client {
	return diskserver.NewClient(diskserver.CommandSocket(c.RunDir, domain), "", nil)
}

func diskUnit(domain string) string { return "xlft-disk@" + unit.UnitNameEscape(domain) + ".service" }

func (a *app) diskServeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "serve DOMAIN",
		Short:  "serve a domain's disks (what xlft-disk@.service runs)",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.serveDisks(cmd.Context(), args[0], daemonLog()); err != nil {
				return fmt.Errorf("disk serve: %s: %w", args[0], err)
			}
			return nil
		},
	}
}

func (a *app) serveDisks(ctx context.Context, domain string, log *zap.Logger) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	id, err := wire.LoadIdentity(c.Identity)
	if err != nil {
		return err
	}
	dc := c.For(domain)
	s := diskserver.New(dc, log.With(zap.String("domain", domain)))
	s.Software = software()
	s.State = func(vdev string) (xlft.DiskState, error) {
		r, err := store.Dir(c.StateDir).LoadDisk(domain, vdev)
		return r.State, err
	}
	s.Dial = func(peer string) (wire.Dialer, error) {
		p, err := peerOf(c, dc, peer)
		if err != nil {
			return nil, err
		}
		return dialer(id, p), nil
	}
	commands, err := control.Listen(diskserver.CommandSocket(c.RunDir, domain))
	if err != nil {
		return err
	}
	clients, err := control.Listen(diskserver.ClientSocket(c.RunDir, domain))
	if err != nil {
		commands.Close()
		return err
	}
	s.AttachedFile = diskserver.CommandSocket(c.RunDir, domain) + ".attached"
	s.HeldDir = diskserver.HeldDirOf(c.RunDir, domain)
	s.DirtyDir = diskserver.DirtyDirOf(c.RunDir, domain)
	if err := s.Recover(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.Idle():
			cancel()
		case <-ctx.Done():
		}
	}()
	daemon.SdNotify(false, daemon.SdNotifyReady)
	err = s.Serve(ctx, commands, clients)
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	s.Close()
	return err
}

// startDiskServer starts the server of a domain's disks, or finds it running.
func startDiskServer(ctx context.Context, domain string) error {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	u := diskUnit(domain)
	conn.ResetFailedUnitContext(ctx, u) // it may never have failed
	result := make(chan string, 1)
	if _, err := conn.StartUnitContext(ctx, u, "replace", result); err != nil {
		return fmt.Errorf("start %s: %w", u, err)
	}
	select {
	case r := <-result:
		if r != "done" {
			return fmt.Errorf("start %s: %s; \"journalctl -u %s\" says why", u, r, u)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", u, ctx.Err())
	}
}

// diskTimeout bounds what a hotplug script waits for.
const diskTimeout = 30 * time.Second

func (a *app) diskAttachCommand() *cobra.Command {
	var socket bool
	c := &cobra.Command{
		Use:   "attach [flags] DOMAIN/VDEV",
		Short: "make a disk a block device of this host, and print which (block-xlft does this)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			where, err := a.attachDisk(cmd.Context(), args[0], socket)
			if err != nil {
				return fmt.Errorf("disk attach: %s: %w", args[0], err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), where)
			return nil
		},
	}
	c.Flags().BoolVar(&socket, "socket", false, "serve it on a socket instead, to programs that speak NBD, and print its URI")
	return c
}

func (a *app) attachDisk(ctx context.Context, arg string, socket bool) (string, error) {
	c, domain, vdev, err := a.disk(arg)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	client := diskClient(c, domain)
	for {
		if err := startDiskServer(ctx, domain); err != nil {
			return "", err
		}
		var where string
		if socket {
			where = "nbd+unix:///" + vdev + "?socket=" + diskserver.ClientSocket(c.RunDir, domain)
			err = client.Open(ctx, vdev)
		} else {
			where, err = client.Attach(ctx, vdev)
		}
		if !errors.Is(err, control.ErrDown) {
			return where, err
		}
		// The one that ran has just come to its end: the next try starts another.
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (a *app) diskDetachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "detach DOMAIN/VDEV",
		Short: "undo attach",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fail := func(err error) error { return fmt.Errorf("disk detach: %s: %w", args[0], err) }
			c, domain, vdev, err := a.disk(args[0])
			if err != nil {
				return fail(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), diskTimeout)
			defer cancel()
			err = diskClient(c, domain).Detach(ctx, vdev)
			if err != nil && !errors.Is(err, control.ErrDown) {
				return fail(err)
			}
			return nil
		},
	}
}

func (a *app) diskStatusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [flags]",
		Short: "show the disks that are served on this host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fail := func(err error) error { return fmt.Errorf("disk status: %w", err) }
			c, err := a.config()
			if err != nil {
				return fail(err)
			}
			domains, err := control.Names(filepath.Dir(diskserver.CommandSocket(c.RunDir, "")))
			if err != nil {
				return fail(err)
			}
			type line struct {
				Domain string `json:"domain"`
				diskserver.DiskStatus
			}
			all := []line{}
			for _, d := range domains {
				st, err := diskClient(c, d).Status(cmd.Context())
				if errors.Is(err, control.ErrDown) {
					continue
				}
				if err != nil {
					return fail(err)
				}
				for _, s := range st {
					all = append(all, line{d, s})
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "DOMAIN\tDISK\tDEVICE\tMIB\tREPLICATION\tPATH")
			for _, l := range all {
				word := "-"
				if p := l.Progress; p != nil && p.Synced {
					word = "in sync"
				} else if p != nil {
					word = fmt.Sprintf("%d %%", p.Compared*100/max(p.Total, 1))
				}
				if h := l.Holding; h != nil && h.On {
					word += fmt.Sprintf(", %d KiB held", h.Bytes>>10)
					switch {
					case h.Error != "":
						word += " (" + h.Error + ")"
					case l.Progress == nil && !h.ReleaseAll:
						word += " until it is known who owns the domain"
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", l.Domain, l.VDev, l.Device, l.Size>>20, word, l.Path)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) diskPromoteCommand() *cobra.Command {
	var replay, discard bool
	c := &cobra.Command{
		Use:   "promote DOMAIN | DOMAIN/VDEV",
		Short: "make this host's copies of a domain's disks those that it runs from",
		Long: `Makes this host's copies of a domain's disks those that it runs from, after the
host that had the newer ones is lost for good. The domain then goes back to the
checkpoint that the copies are of; with durable_ack they are brought to the
newest one that all of them have. A copy that was still being made is refused.

DOMAIN/VDEV promotes one disk alone, as new as it can be.

With storage = "shared" and durable_ack the journal here may have writes that the
storage does not. They are right only if the other host did not run the domain
on alone after this one was lost to it: --replay writes them, --discard forgets
them.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fail := func(err error) error { return fmt.Errorf("disk promote: %s: %w", args[0], err) }
			domain, vdev := args[0], ""
			if strings.Contains(args[0], "/") {
				var err error
				if domain, vdev, err = cutDisk(args[0]); err != nil {
					return fail(err)
				}
			}
			c, err := a.config()
			if err != nil {
				return fail(err)
			}
			how := diskcopy.AskShared
			switch {
			case replay:
				how = diskcopy.ReplayShared
			case discard:
				how = diskcopy.DiscardShared
			}
			copies := &diskcopy.Copies{Config: c, Store: store.Dir(c.StateDir)}
			done, err := copies.Promote(domain, vdev, how)
			if err != nil {
				return fail(err)
			}
			for _, d := range done {
				if d.Epoch > 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s/%s: brought to checkpoint %d by the journal\n", domain, d.VDev, d.Epoch)
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&replay, "replay", false, "write what the journal has to storage that hosts share")
	c.Flags().BoolVar(&discard, "discard", false, "forget what the journal has for storage that hosts share")
	c.MarkFlagsMutuallyExclusive("replay", "discard")
	return c
}

// gates hold back what a domain sends, and end the epochs of its disks.
type gates struct {
	*gate
	disks    *diskserver.Client // nil if it has none
	outdated func()             // the disks here are not the domain's any more
}

func (g *gates) Seal(epoch uint64) error {
	if err := g.gate.Seal(epoch); err != nil || g.disks == nil {
		return err
	}
	return g.disks.Seal(epoch)
}

func (g *gates) Release(epoch uint64) error {
	err := g.gate.Release(epoch)
	if g.disks != nil {
		err = errors.Join(err, g.disks.Release(epoch))
	}
	return err
}

func (g *gates) Held() (held, limit uint64, err error) {
	held, limit, err = g.gate.Held()
	if g.disks != nil {
		// The fullest decides.
		if h, l := g.disks.Held(); limit == 0 || uint64(h)*limit > held*uint64(l) {
			held, limit = uint64(h), uint64(l)
		}
	}
	return held, limit, err
}

func (g *gates) Drain(ctx context.Context) error {
	err := g.gate.Drain(ctx)
	if g.disks != nil {
		err = errors.Join(err, g.disks.Drain(ctx))
	}
	return err
}

func (g *gates) Abandon() error {
	err := g.gate.Abandon()
	if g.disks != nil {
		err = errors.Join(err, g.disks.Abandon())
	}
	return err
}

func (g *gates) Discard() error {
	if g.outdated != nil {
		g.outdated()
	}
	err := g.gate.Discard()
	if g.disks != nil {
		err = errors.Join(err, g.disks.Discard())
	}
	return err
}

// offeredDisks returns the disks of a domain that are copied, as its disk
// server has them.
func offeredDisks(ctx context.Context, c *config.Config, domain string, vdevs []string) ([]wire.Disk, error) {
	if len(vdevs) == 0 {
		return nil, nil
	}
	st, err := diskClient(c, domain).Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("disk server of %s: %w", domain, err)
	}
	var ds []wire.Disk
	for _, v := range vdevs {
		found := false
		for _, s := range st {
			if s.VDev == v {
				ds = append(ds, wire.Disk{VDev: v, Size: s.Size, Shared: s.Shared})
				found = true
			}
		}
		if !found {
			return nil, fmt.Errorf("disk server of %s: it does not serve %s", domain, v)
		}
	}
	return ds, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	"github.com/coreos/go-systemd/v22/util"
	"github.com/spf13/cobra"

	"xlft/xlft/config"

	"xlft/xlft/internal/control"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

func (a *app) startCommand() *cobra.Command {
	var backup string
	var foreground, quiet bool
	c := &cobra.Command{
		Use:     "ft-start [flags] DOMAIN",
		Short:   "protect a running domain",
		GroupID: "domain",
		Long: `Protects a running domain: looks for every reason why it can't be protected,
copies its memory to the backup while it runs, and returns when the backup holds
the first whole checkpoint. From then on the domain survives the loss of this
host. Nothing is changed if it returns 1.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.start(cmd.Context(), args[0], backup, foreground, progressTo(quiet))
			if err != nil {
				return fmt.Errorf("ft-start: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&backup, "backup", "", "the peer that holds the copy (default: the configuration's)")
	c.Flags().BoolVar(&foreground, "foreground", false, "protect from this process, without systemd, until it is interrupted")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return c
}

func progressTo(quiet bool) io.Writer {
	if quiet {
		return io.Discard
	}
	return os.Stderr
}

func (a *app) start(ctx context.Context, domain, backup string, foreground bool, progress io.Writer) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	id, err := wire.LoadIdentity(c.Identity)
	if err != nil {
		return err
	}
	peer, err := peerOf(c, c.For(domain), backup)
	if err != nil {
		return err
	}
	name, err := preflight(ctx, c, id, domain, peer)
	if err != nil {
		return err
	}
	if foreground {
		return protect(ctx, c, name, peer.Name, daemonLog())
	}
	return startUnit(ctx, c, name, peer, progress)
}

// preflight returns the domain's name if nothing stands against protecting it.
// It holds libxl only while it looks.
func preflight(ctx context.Context, c *config.Config, id *wire.Identity, domain string, peer config.Peer) (string, error) {
	h, err := xen.Open()
	if err != nil {
		return "", err
	}
	defer h.Close()
	d, err := h.Lookup(domain)
	if err != nil {
		return "", err
	}
	var st primary.Status
	if err := control.Call(ctx, control.Socket(c.RunDir, d.Name), "GET", "/status", nil, &st); err == nil {
		return "", fmt.Errorf("%s %w (%s)", d.Name, errAlready, st.State)
	}
	ps, err := check(ctx, c, id, h, d, peer)
	if err != nil {
		return "", fmt.Errorf("%s: %w", d.Name, err)
	}
	if len(ps) > 0 {
		return "", &problemsError{d.Name, ps}
	}
	return d.Name, nil
}

func unitOf(domain string) string { return "xlft@" + unit.UnitNameEscape(domain) + ".service" }

// startUnit starts the protector under systemd and waits until the first
// checkpoint is acked.
func startUnit(ctx context.Context, c *config.Config, domain string, peer config.Peer, progress io.Writer) error {
	if !util.IsRunningSystemd() {
		return errors.New("systemd does not run here: use --foreground")
	}
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	os.Remove(errorFile(c, domain))
	u := unitOf(domain)
	if peer.Name != c.For(domain).Backup {
		// The unit reads the same configuration; an override travels beside it.
		if err := os.WriteFile(envFile(c, domain), []byte("XLFT_BACKUP="+peer.Name+"\n"), 0o644); err != nil {
			return err
		}
	} else {
		os.Remove(envFile(c, domain))
	}
	conn.ResetFailedUnitContext(ctx, u) // it may never have failed
	result := make(chan string, 1)
	if _, err := conn.StartUnitContext(ctx, u, "fail", result); err != nil {
		return fmt.Errorf("start %s: %w", u, err)
	}
	bar := newBar(progress, domain)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			// An operator who leaves does not want half a start.
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			conn.StopUnitContext(stop, u, "replace", nil)
			bar.end("interrupted")
			return ctx.Err()
		case r := <-result:
			if r == "done" {
				var st primary.Status
				if err := control.Call(ctx, control.Socket(c.RunDir, domain), "GET", "/status", nil, &st); err != nil {
					bar.end("failed")
					return fmt.Errorf("%s: the protector started and ended: %s", domain, lastError(c, domain))
				}
				bar.end(fmt.Sprintf("protected by %s", peer.Name))
				return nil
			}
			bar.end("failed")
			return fmt.Errorf("%s: %s", domain, lastError(c, domain))
		case <-tick.C:
			var st primary.Status
			if control.Call(ctx, control.Socket(c.RunDir, domain), "GET", "/status", nil, &st) == nil {
				bar.show(st)
			}
		}
	}
}

const (
	progressEvery = 500 * time.Millisecond
	stopTimeout   = time.Minute
)

func envFile(c *config.Config, domain string) string {
	return control.Socket(c.RunDir, domain) + ".env"
}

func lastError(c *config.Config, domain string) string {
	b, err := os.ReadFile(errorFile(c, domain))
	if err != nil {
		return "the protector failed; \"journalctl -u " + unitOf(domain) + "\" says why"
	}
	return strings.TrimSpace(string(b))
}

// A bar shows how far the first copy is. On anything but a terminal it prints
// a line per state.
type bar struct {
	w      io.Writer
	domain string
	tty    bool
	last   string
}

func newBar(w io.Writer, domain string) *bar {
	b := &bar{w: w, domain: domain}
	if f, ok := w.(*os.File); ok {
		if st, err := f.Stat(); err == nil {
			b.tty = st.Mode()&os.ModeCharDevice != 0
		}
	}
	return b
}

func (b *bar) show(st primary.Status) {
	const width = 30
	what, share, mib := st.State, 0.0, st.SeedBytes>>20
	if st.SeedTotal > 0 {
		// Pages that are written meanwhile are sent again.
		share = min(float64(st.SeedBytes)/float64(st.SeedTotal), 0.99)
	}
	// Disks come first: the one that is furthest behind holds the rest up.
	for _, d := range st.Disks {
		if s := float64(d.Compared) / float64(max(d.Total, 1)); !d.Synced && (what == st.State || s < share) {
			what, share, mib = st.State+", disk "+d.VDev, s, uint64(d.Compared)>>20
		}
	}
	if !b.tty {
		if what != b.last {
			b.last = what
			fmt.Fprintf(b.w, "%s: %s\n", b.domain, what)
		}
		return
	}
	n := int(share * width)
	b.last = fmt.Sprintf("%s: %s [%s%s] %3.0f %% %d MiB", b.domain, what,
		strings.Repeat("#", n), strings.Repeat(".", width-n), share*100, mib)
	fmt.Fprintf(b.w, "\r\033[K%s", b.last)
}

func (b *bar) end(word string) {
	if b.tty {
		fmt.Fprint(b.w, "\r\033[K")
	}
	fmt.Fprintf(b.w, "%s: %s\n", b.domain, word)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/netbuffer"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

func (a *app) protectCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "protect DOMAIN",
		Short:  "protect a domain in the foreground (what xlft@.service runs)",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.config()
			if err != nil {
				return fmt.Errorf("protect: %w", err)
			}
			err = protect(cmd.Context(), c, args[0], os.Getenv("XLFT_BACKUP"), daemonLog())
			leaveError(c, args[0], err)
			if errors.Is(err, primary.ErrBackupRuns) || errors.Is(err, xlft.ErrGuestEnded) {
				daemonLog().Warn("protection ended", zap.Error(err))
			}
			if err != nil {
				return fmt.Errorf("protect: %s: %w", args[0], err)
			}
			return nil
		},
	}
}

// errorFile is where a protector that fails leaves the reason for ft-start.
func errorFile(c *config.Config, domain string) string {
	return control.Socket(c.RunDir, domain) + ".error"
}

func leaveError(c *config.Config, domain string, err error) {
	if err == nil {
		os.Remove(errorFile(c, domain))
		return
	}
	os.MkdirAll(c.RunDir, 0o755)
	os.WriteFile(errorFile(c, domain), []byte(err.Error()+"\n"), 0o644)
}

// lock makes sure that a domain has one protector.
func lock(c *config.Config, domain string) (*os.File, error) {
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(control.Socket(c.RunDir, domain)+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errAlready
	}
	return f, nil
}

// protect runs a Session to its end.
func protect(ctx context.Context, c *config.Config, domain, backup string, log *zap.Logger) error {
	id, err := wire.LoadIdentity(c.Identity)
	if err != nil {
		return err
	}
	dc := c.For(domain)
	peer, err := peerOf(c, dc, backup)
	if err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := lock(c, domain)
	if err != nil {
		return err
	}
	defer l.Close()
	d, err := h.Lookup(domain)
	if errors.Is(err, xen.ErrNoDomain) {
		repair(c, h, domain, log)
	}
	if err != nil {
		return err
	}
	o, _, err := offer(ctx, c, h, d)
	if err != nil {
		return err
	}
	g, err := openGate(h, d, dc.NetBuffer)
	if err != nil {
		return fmt.Errorf("hold output: %w", err)
	}
	out := &gates{gate: g}
	s := &primary.Session{
		Domain: domain, Software: software(), Offer: o, Instance: instance(d),
		Describe: func() (wire.Offer, error) {
			o, _, err := offer(ctx, c, h, d)
			return o, err
		},
		Settings: primary.Settings{
			EpochMax: dc.EpochMax, DirtyMax: dc.DirtyMax, FailureTimeout: dc.FailureTimeout,
			AckTimeout: dc.AckTimeout, SuspendTimeout: dc.SuspendTimeout, RetryDelay: dc.RetryDelay,
			SpoolLimit: int64(c.CheckpointMemory), Compress: dc.Compress,
		},
		Guest: h.Guest(d), Output: out, Arbiter: arbiter(c, id, log), Dial: dialer(id, peer), Peer: peer.Name,
		Store: store.Dir(c.StateDir), Log: log.With(zap.String("domain", domain), zap.String("backup", peer.Name)),
	}
	if len(o.Disks) > 0 {
		out.disks = diskserver.NewClient(diskserver.CommandSocket(c.RunDir, domain), peer.Name, o.Disks)
		out.outdated = func() {
			for _, d := range o.Disks {
				if err := store.Dir(c.StateDir).SaveDisk(domain, d.VDev, xlft.DiskRecord{State: xlft.DiskOutdated}); err != nil {
					log.Error("the disk here is outdated", zap.Error(err))
				}
			}
		}
		s.Disks = out.disks
	}
	done := make(chan struct{})
	var result error
	stop, err := serveSession(c, s, done, &result)
	if err != nil {
		g.Close()
		return err
	}
	defer stop()
	go notifySystemd(ctx, s, done)
	result = s.Run(ctx)
	close(done)
	return result
}

// repair takes away gates of domains that are gone.
func repair(c *config.Config, h *xen.Host, domain string, log *zap.Logger) {
	ids, err := netbuffer.Stale()
	if err != nil {
		log.Warn("look for gates left behind", zap.Error(err))
		return
	}
	for _, id := range ids {
		if _, err := h.Lookup(fmt.Sprint(id)); !errors.Is(err, xen.ErrNoDomain) {
			continue
		}
		if err := netbuffer.Cleanup(id, netbuffer.Options{}, true); err != nil {
			log.Warn("remove a gate left behind", zap.Uint32("domid", id), zap.Error(err))
		}
	}
}

// serveSession answers the commands. Requests that end the session are
// answered when it has ended.
func serveSession(c *config.Config, s *primary.Session, done <-chan struct{}, result *error) (stop func(), err error) {
	l, err := control.Listen(control.Socket(c.RunDir, s.Domain))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	control.Handle(mux, "GET /status", func(*http.Request) (any, error) { return s.Status(), nil })
	control.Handle(mux, "POST /stop", func(r *http.Request) (any, error) {
		if err := s.Stop(r.Context()); err != nil {
			return nil, err
		}
		select {
		case <-done:
			return s.Status(), *result
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	})
	control.Handle(mux, "POST /failover", func(r *http.Request) (any, error) { return failover(r.Context(), s, done, result) })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go srv.Serve(l)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		srv.Shutdown(ctx)
		os.Remove(control.Socket(c.RunDir, s.Domain))
	}, nil
}

func failover(ctx context.Context, s *primary.Session, done <-chan struct{}, result *error) (any, error) {
	if err := s.Failover(ctx); err != nil {
		return nil, err
	}
	begun := false
	for {
		changed := s.Changed()
		st := s.Status()
		switch st.State {
		case primary.HandingOver.String():
			begun = true
		case primary.Protected.String(), primary.Ended.String():
		default:
			if begun {
				return nil, fmt.Errorf("the switch-over did not happen (%s): %s", st.State, st.LastError)
			}
		}
		select {
		case <-changed:
		case <-done:
			return s.Status(), *result
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// watchdogInterval is what the service manager expects a sign of life within;
// without a watchdog, how often its status is looked after.
func watchdogInterval() time.Duration {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return 20 * time.Second
	}
	return interval
}

// notifySystemd tells the service manager when the first checkpoint is acked,
// what goes on, and that the session still answers.
func notifySystemd(ctx context.Context, s *primary.Session, done <-chan struct{}) {
	interval := watchdogInterval()
	watch := time.NewTicker(interval / 3)
	defer watch.Stop()
	ready, said := false, ""
	for {
		changed := s.Changed()
		st := s.Status()
		if !ready && st.Protected {
			ready = true
			daemon.SdNotify(false, daemon.SdNotifyReady)
		}
		if line := fmt.Sprintf("%s, backup %s", st.State, st.Peer); line != said {
			said = line
			daemon.SdNotify(false, "STATUS="+line)
		}
		select {
		case <-changed:
		case <-watch.C:
			alive, cancel := context.WithTimeout(ctx, interval/3)
			if s.Alive(alive) == nil {
				daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
			cancel()
		case <-done:
			daemon.SdNotify(false, daemon.SdNotifyStopping)
			return
		}
	}
}

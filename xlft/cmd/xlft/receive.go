package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskcopy"
	"xlft/xlft/internal/paths"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/restore"
	"xlft/xlft/internal/soundness"
	"xlft/xlft/internal/steward"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

func (a *app) receiveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "receive",
		Short:   "hold copies of other hosts' domains (what xlft-receiver.service runs)",
		GroupID: "host",
		Long: `Listens for other hosts that protect their domains here, holds the copies, and
runs a domain on when its host is lost. The listening socket is systemd's if it
hands one over, otherwise receive.listen of the configuration.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.receive(cmd.Context(), daemonLog()); err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			return nil
		},
	}
}

func (a *app) receive(ctx context.Context, log *zap.Logger) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	live := newLive(c, log)
	id, err := wire.LoadIdentity(c.Identity)
	if err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	copies := &diskcopy.Copies{Config: live.config, Store: store.Dir(c.StateDir)}
	restorer := &restore.Restorer{Host: h, Log: log, RunDir: c.RunDir, CheckDisk: copies.Check, Command: []string{self, "restore-worker"}, Runs: keeperOf(log)}
	st := store.Dir(c.StateDir)
	err = restorer.Sweep(func(domain string) (bool, error) {
		rec, err := st.Load(domain)
		return rec.Role == xlft.HostOwner && rec.Pending, err
	})
	if err != nil {
		return fmt.Errorf("destroy replicas left behind: %w", err)
	}
	inner, err := listener(c.Listen)
	if err != nil {
		return err
	}
	l := wire.NewListener(inner, id.TLSConfig(func(f wire.Fingerprint) bool { return live.peer(f) != "" }))
	live.arbiterOf = func(c *config.Config) xlft.Arbiter {
		return arbiter.New(c, software(), func(p config.Peer) wire.Dialer { return id.Dialer(p.Addresses, p.Fingerprint) }, log)
	}
	live.take(c)
	r := &backup.Receiver{
		Software: software(), Restorer: restorer, Arbiter: live, Store: st, Log: log,
		PeerName: func(c net.Conn) string {
			f, _ := wire.PeerOf(c)
			return live.peer(f)
		},
		Disks: copies, RetryDelay: c.Default.RetryDelay, EpochLimit: c.CheckpointMemory, PageCache: int64(c.PageCache),
	}
	r.Suspected = func(ctx context.Context, domain string) {
		switch pid, err := protector.EndHung(ctx, c.RunDir, domain); {
		case err != nil:
			log.Error("a protector of which its backup hears nothing", zap.String("domain", domain), zap.Error(err))
		case pid != 0:
			log.Error("a protector that neither its backup hears, nor this host, was ended: its successor finds out who owns the domain", zap.String("domain", domain), zap.Int("pid", pid))
		}
	}
	r.Health = live.health(ctx, c.RunDir)
	r.List = lister(live.config, h.Info)
	r.Drained = func() bool { return drained(live.config()) }
	r.Ask = func(ctx context.Context, peer string, q wire.OwnerQuery) (res wire.OwnerResult, err error) {
		p, ok := live.config().Peers[peer]
		if !ok {
			return res, fmt.Errorf("no [peer.%s] in the configuration", peer)
		}
		err = wire.Ask(ctx, id.Dialer(p.Addresses, p.Fingerprint), software(), wire.TypeOwner, q, wire.TypeOwnerResult, &res)
		return res, err
	}
	changed := make(chan struct{}, 1)
	r.OnChange(func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	s := newSteward(live.config, self, a.configPath, log)
	ways := &paths.Monitor{
		Config: live.config, Software: software(), Log: log,
		Dial: func(p config.Peer, address string) wire.Dialer { return id.Dialer([]string{address}, p.Fingerprint) },
	}
	stop, err := serveReceiver(control.Socket(c.RunDir, control.Receiver), r, s, ways)
	if err != nil {
		return err
	}
	defer stop()
	go ways.Run(ctx)
	sound := &soundness.Watch{Log: log, Empty: drainUntilBoot(self, a.configPath), Emptied: func() bool { return drained(live.config()) },
		Note: filepath.Join(c.RunDir, "unsound"), Plan: func() (string, time.Duration) {
			c := live.config()
			return c.HealthCommand, c.HealthInterval
		}}
	go sound.Run(ctx)
	go s.Run(ctx) // what it has begun goes on without it
	log.Info("receiving", zap.Stringer("address", l.Addr()), zap.Stringer("arbiter", r.Arbiter), zap.Stringer("fingerprint", id.Fingerprint))
	daemon.SdNotify(false, daemon.SdNotifyReady)
	done := make(chan struct{})
	defer close(done)
	go notifySystemdOf(r, changed, done)
	signal.Ignore(syscall.SIGHUP) // it ends nothing here
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-reload:
				live.reload(ctx, a.config, r)
			case <-done:
				return
			}
		}
	}()
	return r.Serve(ctx, l)
}

// drainUntilBoot returns what empties this host, in a process of its own, as an operator does.
// It goes on if this process ends meanwhile.
func drainUntilBoot(program, config string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := exec.CommandContext(context.WithoutCancel(ctx), program, "--config", config, "ft-drain", "--until-boot").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(out)), " "))
		}
		return nil
	}
}

func serveReceiver(path string, r *backup.Receiver, s *steward.Steward, ways *paths.Monitor) (stop func(), err error) {
	l, err := control.Listen(path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	control.Handle(mux, "GET /decision", func(req *http.Request) (any, error) {
		return r.Decision(req.Context(), req.URL.Query().Get("domain"))
	})
	control.Handle(mux, "POST /resolve", func(req *http.Request) (any, error) {
		var a protector.Resolution
		if err := json.NewDecoder(req.Body).Decode(&a); err != nil {
			return nil, err
		}
		return r.Resolve(req.Context(), a.Domain, a.Word, a.By)
	})
	control.Handle(mux, "GET /replicas", func(*http.Request) (any, error) { return r.Replicas(), nil })
	control.Handle(mux, "POST /evict", func(req *http.Request) (any, error) {
		r.Evict(req.Context())
		return r.Replicas(), nil
	})
	control.Handle(mux, "GET /unprotected", func(*http.Request) (any, error) { return s.Unprotected(), nil })
	control.Handle(mux, "GET /paths", func(*http.Request) (any, error) { return ways.Paths(), nil })
	control.Handle(mux, "GET /conflicts", func(*http.Request) (any, error) { return r.Conflicts(), nil })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go srv.Serve(l)
	return func() {
		srv.Close()
		os.Remove(path)
	}, nil
}

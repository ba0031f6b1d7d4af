package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/internal/life"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/xen"
)

// dumpDir is XEN_DUMP_DIR of Xen's build.
const dumpDir = "/var/lib/xen/dump"

func (a *app) keepCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "keep DOMAIN",
		Short:  "carry out on_poweroff, on_reboot and on_crash of a domain (what xlft-keep@.service runs)",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.keep(cmd.Context(), args[0], daemonLog())
			switch {
			case errors.Is(err, life.ErrNotStarted):
				return decidedError{fmt.Errorf("keep: %s: %w", args[0], err)}
			case err != nil:
				return fmt.Errorf("keep: %s: %w", args[0], err)
			}
			return nil
		},
	}
}

func (a *app) keep(ctx context.Context, domain string, log *zap.Logger) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	log = log.With(zap.String("domain", domain))
	var said xlft.Said
	k := &life.Keeper{
		Host: h, Domain: domain, DumpDir: dumpDir, Restarting: protector.RestartFile(c.RunDir, domain), Log: log,
		Decide: func() (func(), error) { return protector.Owned(c, domain) },
		Alone: func(domid uint32) {
			pids, err := life.NewXL().End(domid)
			if err != nil && said.New("xl", err.Error()) {
				log.Warn("look for the process that \"xl create\" left", zap.Error(err))
			}
			if len(pids) > 0 {
				log.Info("this process stands in for the one that \"xl create\" left, which was ended", zap.Ints("pids", pids))
			}
		},
		Say: func(format string, args ...any) { daemon.SdNotify(false, "STATUS="+fmt.Sprintf(format, args...)) },
	}
	daemon.SdNotify(false, daemon.SdNotifyReady)
	return k.Run(ctx)
}

func keepUnit(domain string) string { return "xlft-keep@" + unit.UnitNameEscape(domain) + ".service" }

// startKeeper has systemd start the keeper of a domain, and does not wait for it.
func startKeeper(ctx context.Context, domain string) error {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	u := keepUnit(domain)
	if _, err := conn.StartUnitContext(ctx, u, "replace", nil); err != nil {
		return fmt.Errorf("start %s: %w", u, err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/store"
	"xlft/xlft/wire"
)

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
	records := store.Dir(c.StateDir)
	s.Record = func(vdev string) (xlft.DiskRecord, error) { return records.LoadDisk(domain, vdev) }
	s.SaveRecord = func(vdev string, r xlft.DiskRecord) error { return records.SaveDisk(domain, vdev, r) }
	s.Owned = func() (xlft.Ownership, error) { return records.Load(domain) }
	s.Boot = protector.BootID()
	s.Dial = func(peer string) (wire.Dialer, error) {
		p, err := c.Backup(dc, peer)
		if err != nil {
			return nil, err
		}
		return id.Dialer(p.Addresses, p.Fingerprint), nil
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
	s.Gone = backendGone
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

// backendGone reports whether a domain's backend, by its path in xenstore, is
// there no more. If that can't be found out, it is there.
func backendGone(name string) bool {
	if !strings.Contains(name, "backend/") {
		return false
	}
	var exit *exec.ExitError
	err := exec.Command("xenstore-exists", name).Run()
	return errors.As(err, &exit) && exit.ExitCode() == 1
}

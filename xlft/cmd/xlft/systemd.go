package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	"github.com/coreos/go-systemd/v22/util"

	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/protector"
	"xlft/xlft/primary"
)

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
	u := unitOf(domain)
	conn.ResetFailedUnitContext(ctx, u) // it may never have failed
	if st := activeState(ctx, conn, u); st == "active" || st == "activating" || st == "reloading" {
		return fmt.Errorf("a protector of %s is already there (%s is %s): \"xl ft-status %s\", \"journalctl -u %s\"", domain, u, st, domain, u)
	}
	// Only now: what is chosen is for the next protector, and not for the successor of one that is there.
	protector.LeaveError(c.RunDir, domain, nil)
	override := ""
	if peer.Name != c.For(domain).Backup() {
		override = peer.Name
	}
	if err := protector.ChooseBackup(c.RunDir, domain, override); err != nil {
		return err
	}
	protector.DontWait(c.RunDir, domain)
	result := make(chan string, 1)
	if _, err := conn.StartUnitContext(ctx, u, "fail", result); err != nil {
		return fmt.Errorf("start %s: %w", u, err)
	}
	client := protector.NewClient(c.RunDir, domain)
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
				st, err := client.Status(ctx)
				if err == nil && !st.Protected {
					bar.end("lost again")
					return fmt.Errorf("%s: was protected, and is %v now: %s", domain, st.State, st.LastError)
				}
				if err != nil {
					bar.end("failed")
					return fmt.Errorf("%s: the protector started and ended: %s", domain, lastError(c, domain))
				}
				bar.end(fmt.Sprintf("protected by %s", peer.Name))
				return nil
			}
			bar.end("failed")
			return fmt.Errorf("%s: %s", domain, lastError(c, domain))
		case <-tick.C:
			if st, err := client.Status(ctx); err == nil {
				bar.show(st)
			} else {
				bar.note(protector.LastError(c.RunDir, domain)) // it can't begin, and tries again
			}
		}
	}
}

// activeState returns a unit's, "" if that can't be told.
func activeState(ctx context.Context, conn *dbus.Conn, u string) string {
	p, err := conn.GetUnitPropertyContext(ctx, u, "ActiveState")
	if err != nil {
		return ""
	}
	st, _ := p.Value.Value().(string)
	return st
}

// stopUnit stops a protector that waits for its domain to be started again, and
// reports whether there was one.
func stopUnit(ctx context.Context, domain string) (bool, error) {
	if !util.IsRunningSystemd() {
		return false, nil
	}
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return false, fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	u := unitOf(domain)
	if st := activeState(ctx, conn, u); st != "active" && st != "activating" {
		return false, nil
	}
	result := make(chan string, 1)
	if _, err := conn.StopUnitContext(ctx, u, "replace", result); err != nil {
		return false, fmt.Errorf("stop %s: %w", u, err)
	}
	select {
	case <-result:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

const (
	progressEvery = 500 * time.Millisecond
	stopTimeout   = time.Minute
)

func lastError(c *config.Config, domain string) string {
	if why := protector.LastError(c.RunDir, domain); why != "" {
		return why
	}
	return "the protector failed; \"journalctl -u " + unitOf(domain) + "\" says why"
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

func diskUnit(domain string) string { return "xlft-disk@" + unit.UnitNameEscape(domain) + ".service" }

// listener returns systemd's socket if there is one.
func listener(address string) (net.Listener, error) {
	ls, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take systemd's socket: %w", err)
	}
	switch len(ls) {
	case 0:
		return net.Listen("tcp", address)
	case 1:
		return ls[0], nil
	}
	return nil, fmt.Errorf("systemd handed over %d sockets, not one", len(ls))
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

// notifySystemd tells the service manager when the first checkpoint is acked, the
// session's state, and that the session's loop still answers.
func notifySystemd(ctx context.Context, s *primary.Session) {
	interval := watchdogInterval()
	watch := time.NewTicker(interval / 3)
	defer watch.Stop()
	ready, last := false, ""
	for {
		changed := s.Changed()
		st := s.Status()
		if !ready && st.Protected {
			ready = true
			daemon.SdNotify(false, daemon.SdNotifyReady)
		}
		if line := fmt.Sprintf("%s, backup %s", st.State, st.Peer); line != last {
			last = line
			daemon.SdNotify(false, "STATUS="+line)
		}
		select {
		case <-changed:
		case <-watch.C:
			// Also while it stops: the end of a protection may take its time.
			alive, cancel := context.WithTimeout(context.WithoutCancel(ctx), interval/3)
			if s.Alive(alive) == nil {
				daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
			cancel()
		case <-s.Done():
			if again, _ := s.Again(); !again {
				daemon.SdNotify(false, daemon.SdNotifyStopping)
			}
			return
		}
	}
}

// notifySystemdOf tells the service manager how many replicas a receiver holds, and
// that the receiver still answers.
func notifySystemdOf(r *backup.Receiver, changed, done <-chan struct{}) {
	interval := watchdogInterval()
	watch := time.NewTicker(interval / 3)
	defer watch.Stop()
	for {
		all := r.Replicas() // takes the locks that everything here takes
		ready := 0
		for _, s := range all {
			if s.State == backup.Ready {
				ready++
			}
		}
		daemon.SdNotify(false, fmt.Sprintf("STATUS=%d replicas, %d of them complete\n%s", len(all), ready, daemon.SdNotifyWatchdog))
		select {
		case <-changed:
		case <-watch.C:
		case <-done:
			daemon.SdNotify(false, daemon.SdNotifyStopping)
			return
		}
	}
}

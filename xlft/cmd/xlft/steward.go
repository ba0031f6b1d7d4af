package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"
	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/steward"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
)

// newSteward returns what keeps this host's domains protected. It is a part of the
// receiver: each host that runs domains, or takes them over, has one. Program is this one, and
// path its configuration's.
func newSteward(config func() *config.Config, program, path string, log *zap.Logger) *steward.Steward {
	return &steward.Steward{
		Host: &stewarded{config: config, program: program, path: path}, Log: log,
		Plan: func(domain string) steward.Plan {
			d := config().For(domain)
			return steward.Plan{Protect: d.Protect, Backups: d.Backups}
		},
	}
}

// stewarded is this host as a Steward sees it.
type stewarded struct {
	config  func() *config.Config
	program string
	path    string

	mu   sync.Mutex // of both connections
	host *xen.Host
	conn *dbus.Conn
}

// Domains lists the domains that are whole and run here.
func (s *stewarded) Domains() (list []steward.Domain, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		if s.host, err = xen.Open(); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil { // xenstored may have been started anew
			s.host.Close()
			s.host = nil
		}
	}()
	all, err := s.host.Domains()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if runs, err := s.runs(d); err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name, err)
		} else if runs {
			list = append(list, steward.Domain{Name: d.Name, Instance: protector.Instance(d)})
		}
	}
	return list, nil
}

// runs reports whether a domain is whole, and this host's.
func (s *stewarded) runs(d xen.Domain) (bool, error) {
	// Those that are received are somebody else's until they have their own names.
	if d.Name == "" || isReplica(d.Name) || strings.HasSuffix(d.Name, "--incoming") || strings.HasSuffix(d.Name, "--migratedaway") || !s.config().For(d.Name).Protect {
		return false, nil
	}
	if st, gone, _, err := s.host.End(d.ID); err != nil || gone || st == xlft.GuestOver {
		return false, err
	}
	if unfinished, err := s.host.Unfinished(d.ID); err != nil || unfinished {
		return false, err
	}
	// A record that can't be read is the protector's to tell of.
	o, err := store.Dir(s.config().StateDir).Load(d.Name)
	return err != nil || o.Role != xlft.HostOwner || !o.Pending, nil
}

func isReplica(name string) bool { return strings.HasSuffix(name, domconf.ReplicaSuffix) }

// Busy reports whether a protector is there, or is being started or stopped.
func (s *stewarded) Busy(ctx context.Context, domain string) (bool, error) {
	if !util.IsRunningSystemd() {
		return false, errors.New("systemd does not run here")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ask, cancel := context.WithTimeout(ctx, overview.Patience)
	defer cancel()
	if s.conn == nil || !s.conn.Connected() {
		conn, err := dbus.NewSystemConnectionContext(context.WithoutCancel(ctx))
		if err != nil {
			return false, fmt.Errorf("reach systemd: %w", err)
		}
		s.conn = conn
	}
	switch st := activeState(ask, s.conn, unitOf(domain)); st {
	case "":
		s.conn.Close()
		s.conn = nil
		return false, fmt.Errorf("ask systemd for the state of %s", unitOf(domain))
	case "inactive", "failed":
	default:
		return true, nil
	}
	return inTerminal(ctx, s.config().RunDir, domain), nil
}

// inTerminal reports whether a protector runs in a terminal. One that does not answer, since
// it was stopped there, say, is one too: the other domains do not wait for it.
func inTerminal(ctx context.Context, runDir, domain string) bool {
	ask, cancel := context.WithTimeout(ctx, overview.Patience)
	defer cancel()
	_, err := protector.NewClient(runDir, domain).Status(ask)
	return !errors.Is(err, control.ErrDown)
}

func (s *stewarded) Stopped(d steward.Domain) (stopped bool, until time.Time) {
	return protector.Stopped(s.config().RunDir, d.Name, d.Instance)
}

// Try is "xl ft-start", in a process of its own: nothing that a look at a domain meets in
// libxl ends the copies that are here. It goes on if this process ends meanwhile.
func (s *stewarded) Try(ctx context.Context, domain, backup string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), s.program, "--config", s.path, "ft-start", "--quiet", "--unless-stopped", "--backup", backup, "--", domain)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	said := strings.Join(strings.Fields(strings.TrimPrefix(string(out), "ft-start: ")), " ")
	if said == "" {
		return err
	}
	return fmt.Errorf("%s: %s", backup, said)
}

func (s *stewarded) Why(domain string) string { return protector.LastError(s.config().RunDir, domain) }

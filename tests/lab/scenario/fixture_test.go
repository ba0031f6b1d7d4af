//go:build lab

// Package scenario shows the promises of xlft on two real Xen hosts. Its tests run one after the other on the same
// hosts and the same guest: each test starts from the state in which the previous one succeeded, or from fresh hosts,
// so each can also run alone.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

func TestMain(m *testing.M) { lab.Main(m) }

const (
	soon     = 30 * time.Second // for steps that copy no guest memory
	patience = 3 * time.Minute  // for steps that do
)

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A fixture is two hosts with xlft and a guest that runs on one of them.
type fixture struct {
	*lab.Lab
	t      *testing.T
	guest  lab.Guest
	client *probe.Client // lives as long as the guest
	home   *lab.Host     // where the guest runs
	saved  map[*lab.Host][]byte
	over   bool // the next test needs a new fixture

	kind  storage    // of the guest's disk, in tests with one
	power *lab.Power // power switch of the hosts, if they fence each other
}

// lastFixture is the fixture that the last test left; nil if the next test can't use it.
var lastFixture *fixture

// running returns a fixture whose guest runs, protected or not.
func running(t *testing.T) *fixture {
	t.Helper()
	fx := lastFixture
	lastFixture = nil
	if fx == nil {
		fx = &fixture{guest: lab.NewGuest("web1", 10), saved: map[*lab.Host][]byte{}}
		fx.Lab = lab.Start(t)
	} else {
		fx.Lab = lab.Continue(t)
	}
	fx.t = t
	t.Cleanup(func() {
		switch {
		case t.Failed():
			fx.report()
		case !fx.over:
			lastFixture = fx
		}
	})
	if fx.client == nil {
		fx.home = fx.A
		fx.install(ft.Usual)
		fx.boot()
	}
	return fx
}

// fresh returns a new fixture: fresh hosts with nothing installed.
func fresh(t *testing.T) *fixture {
	t.Helper()
	lastFixture = nil // its hosts are taken
	fx := &fixture{t: t, guest: lab.NewGuest("web1", 10), saved: map[*lab.Host][]byte{}, over: true}
	fx.Lab = lab.Start(t)
	fx.home = fx.A
	t.Cleanup(func() {
		if t.Failed() {
			fx.report()
		}
	})
	return fx
}

// install puts xlft on both hosts.
func (fx *fixture) install(s ft.Settings) {
	fx.t.Helper()
	check(fx.t, ft.Install(within(fx.t, patience), fx.Lab, s))
	for _, h := range fx.Hosts() {
		var err error
		fx.saved[h], err = ft.Save(within(fx.t, soon), h)
		check(fx.t, err)
	}
}

// boot starts the guest.
func (fx *fixture) boot() {
	fx.t.Helper()
	check(fx.t, fx.home.CreateGuest(within(fx.t, patience), fx.guest))
	fx.client = fx.dial()
}

// protected returns a fixture whose guest is protected by the other host.
func protected(t *testing.T) *fixture {
	t.Helper()
	fx := running(t)
	if !fx.status(fx.home).Protected {
		fx.protect()
	}
	return fx
}

// unprotected returns a fixture whose guest runs without protection.
func unprotected(t *testing.T) *fixture {
	t.Helper()
	fx := running(t)
	if fx.status(fx.home).Protected {
		fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
	}
	return fx
}

// backup is the host that the guest does not run on.
func (fx *fixture) backup() *lab.Host { return fx.Peer(fx.home) }

func (fx *fixture) protect() {
	fx.t.Helper()
	begun := time.Now()
	_, err := fx.home.Run(within(fx.t, patience), "xl", "ft-start", fx.guest.Name)
	check(fx.t, err)
	fx.t.Logf("ft-start on %s took %v", fx.home.Name(), round(time.Since(begun)))
}

func (fx *fixture) dial() *probe.Client {
	fx.t.Helper()
	c, err := fx.DialGuest(within(fx.t, patience), fx.guest)
	check(fx.t, err)
	check(fx.t, c.SetDeadline(time.Now().Add(patience)))
	_, err = c.Get()
	check(fx.t, err)
	return c
}

// ask returns the client with a deadline.
func (fx *fixture) ask() *probe.Client {
	fx.t.Helper()
	check(fx.t, fx.client.SetDeadline(time.Now().Add(patience)))
	return fx.client
}

func (fx *fixture) get() probe.State {
	fx.t.Helper()
	s, err := fx.ask().Get()
	check(fx.t, err)
	return s
}

func (fx *fixture) status(h *lab.Host) ft.Row {
	fx.t.Helper()
	r, err := ft.Status(within(fx.t, soon), h, fx.guest.Name)
	check(fx.t, err)
	return r
}

// await waits until ok accepts the status on a host.
func (fx *fixture) await(h *lab.Host, what string, ok func(ft.Row) bool) ft.Row {
	fx.t.Helper()
	begun := time.Now()
	r, err := ft.Await(within(fx.t, patience), h, fx.guest.Name, what, ok)
	check(fx.t, err)
	fx.t.Logf("%s on %s after %v", what, h.Name(), round(time.Since(begun)))
	return r
}

func isProtected(r ft.Row) bool { return r.Protected }

// awaitUnprotected waits until the guest's host reports that the guest is unprotected, and checks every kind of report.
func (fx *fixture) awaitUnprotected() {
	fx.t.Helper()
	fx.await(fx.home, "unprotected", func(r ft.Row) bool { return !r.Protected && r.Role == "primary" })
	out, err := fx.home.Run(within(fx.t, soon), "xl", "ft-status", fx.guest.Name)
	var ce *lab.CommandError
	if !errors.As(err, &ce) || ce.Status.Code != 1 || !strings.Contains(out, "Protected:") {
		fx.t.Errorf("ft-status of an unprotected domain: %v\n%s", err, out)
		return
	}
	fx.t.Logf("ft-status: exit status 1, %q", strings.TrimSpace(ce.Stderr))
	fx.expectLog(fx.home, "protection lost")
}

// expectLog checks that xlft's units logged a text on a host, and shows the last such line.
func (fx *fixture) expectLog(h *lab.Host, what string) {
	fx.t.Helper()
	last := ""
	for line := range strings.Lines(ft.Journal(within(fx.t, soon), h)) {
		if strings.Contains(line, what) {
			last = strings.TrimSpace(line)
		}
	}
	if last == "" {
		fx.t.Errorf("no log line on %s has %q", h.Name(), what)
	}
	fx.t.Logf("log of %s: %s", h.Name(), last)
}

// domains returns the names of a host's domains besides dom0.
func (fx *fixture) domains(h *lab.Host) []string {
	fx.t.Helper()
	all, err := h.Domains(within(fx.t, soon))
	check(fx.t, err)
	var names []string
	for _, d := range all {
		if d.ID != 0 {
			names = append(names, d.Name)
		}
	}
	return names
}

// awaitDomains waits until a host runs these domains and no others.
func (fx *fixture) awaitDomains(h *lab.Host, want ...string) {
	fx.t.Helper()
	fx.until(soon, func() error {
		if got := fx.domains(h); !slices.Equal(got, want) {
			return fmt.Errorf("host %s runs %q, want %q", h.Name(), got, want)
		}
		return nil
	})
}

// awaitClean waits until nothing of xlft is left in a host's network.
func (fx *fixture) awaitClean(h *lab.Host) {
	fx.t.Helper()
	fx.until(soon, func() error {
		out, err := h.Run(within(fx.t, soon), "sh", "-c", "tc qdisc show; ip -o link show type ifb")
		if err != nil {
			return err
		}
		for _, word := range []string{"plug", "clsact", "ingress", "ifb"} {
			if strings.Contains(out, word) {
				return fmt.Errorf("left in the network of %s:\n%s", h.Name(), out)
			}
		}
		return nil
	})
}

// until waits until f returns nil. It pauses between the calls, because f asks busy hosts.
func (fx *fixture) until(d time.Duration, f func() error) {
	fx.t.Helper()
	ctx := within(fx.t, d)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			fx.t.Fatal(err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// awaitTakeover waits until a host has the guest.
func (fx *fixture) awaitTakeover(to *lab.Host) {
	fx.t.Helper()
	fx.await(to, "taken over", func(r ft.Row) bool { return r.Role == "owner" })
	fx.home = to
}

// revive restores a host that was killed and puts xlft on it as it was.
func (fx *fixture) revive(h *lab.Host) {
	fx.t.Helper()
	begun := time.Now()
	check(fx.t, h.Revive(within(fx.t, patience)))
	check(fx.t, ft.Reinstall(within(fx.t, patience), h, fx.saved[h]))
	fx.t.Logf("%s is back with xlft after %v", h.Name(), round(time.Since(begun)))
}

// signal sends a signal to the processes on a host whose command line has a word.
func (fx *fixture) signal(h *lab.Host, sig, word string) {
	fx.t.Helper()
	h.Must(fx.t, "pkill", "-"+sig, "-f", "/xlft "+word)
}

// report logs the state of both hosts, and each protector's stacks, which are in the journal.
func (fx *fixture) report() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	defer cancel()
	for _, h := range fx.Hosts() {
		out, err := h.Run(ctx, "sh", "-c", "xl list; xl ft-status --json; ip -s link; tc -s qdisc show; dmesg | tail -n 30; systemctl kill --signal=QUIT --kill-who=main 'xlft@*.service'; journalctl --sync")
		fx.t.Logf("state of %s (%v):\n%s", h.Name(), err, out)
		fx.t.Logf("journal of %s:\n%s", h.Name(), ft.Journal(ctx, h))
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

//go:build lab

// Package scenario shows the promises of xlft on two real Xen hosts. Its tests follow each other on the same hosts and
// the same guest: each one begins where the one before ended well, or with fresh hosts, so that each can run alone too.
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
	soon     = 30 * time.Second // for what needs no copy of the guest's memory
	patience = 3 * time.Minute  // for what does
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

// A world is two hosts with xlft and a guest that runs on one of them.
type world struct {
	*lab.Lab
	t      *testing.T
	guest  lab.Guest
	client *probe.Client // lives as long as the guest
	home   *lab.Host     // where the guest runs
	saved  map[*lab.Host][]byte
	over   bool // not fit for another test

	kind  storage    // of the guest's disk, in tests with one
	power *lab.Power // of the hosts, if they fence each other
}

// standing is the world that the last test left; nil if it is not fit for another one.
var standing *world

// running gives a world whose guest runs, protected or not.
func running(t *testing.T) *world {
	t.Helper()
	w := standing
	standing = nil
	if w == nil {
		w = &world{guest: lab.NewGuest("web1", 10), saved: map[*lab.Host][]byte{}}
		w.Lab = lab.Start(t)
	} else {
		w.Lab = lab.Continue(t)
	}
	w.t = t
	t.Cleanup(func() {
		switch {
		case t.Failed():
			w.report()
		case !w.over:
			standing = w
		}
	})
	if w.client == nil {
		w.home = w.A
		w.install(ft.Usual)
		w.boot()
	}
	return w
}

// fresh gives a world of one's own: fresh hosts, nothing on them.
func fresh(t *testing.T) *world {
	t.Helper()
	standing = nil // its hosts are taken
	w := &world{t: t, guest: lab.NewGuest("web1", 10), saved: map[*lab.Host][]byte{}, over: true}
	w.Lab = lab.Start(t)
	w.home = w.A
	t.Cleanup(func() {
		if t.Failed() {
			w.report()
		}
	})
	return w
}

// install puts xlft on both hosts.
func (w *world) install(s ft.Settings) {
	w.t.Helper()
	check(w.t, ft.Install(within(w.t, patience), w.Lab, s))
	for _, h := range w.Hosts() {
		var err error
		w.saved[h], err = ft.Save(within(w.t, soon), h)
		check(w.t, err)
	}
}

// boot starts the guest.
func (w *world) boot() {
	w.t.Helper()
	check(w.t, w.home.CreateGuest(within(w.t, patience), w.guest))
	w.client = w.dial()
}

// protected gives a world whose guest is protected by the other host.
func protected(t *testing.T) *world {
	t.Helper()
	w := running(t)
	if !w.status(w.home).Protected {
		w.protect()
	}
	return w
}

// unprotected gives a world whose guest runs without protection.
func unprotected(t *testing.T) *world {
	t.Helper()
	w := running(t)
	if w.status(w.home).Protected {
		w.home.Must(t, "xl", "ft-stop", w.guest.Name)
	}
	return w
}

// backup is the host that the guest does not run on.
func (w *world) backup() *lab.Host { return w.Peer(w.home) }

func (w *world) protect() {
	w.t.Helper()
	begun := time.Now()
	_, err := w.home.Run(within(w.t, patience), "xl", "ft-start", w.guest.Name)
	check(w.t, err)
	w.t.Logf("ft-start on %s took %v", w.home.Name(), round(time.Since(begun)))
}

func (w *world) dial() *probe.Client {
	w.t.Helper()
	c, err := w.DialGuest(within(w.t, patience), w.guest)
	check(w.t, err)
	check(w.t, c.SetDeadline(time.Now().Add(patience)))
	_, err = c.Get()
	check(w.t, err)
	return c
}

// ask bounds what the test asks of the guest.
func (w *world) ask() *probe.Client {
	w.t.Helper()
	check(w.t, w.client.SetDeadline(time.Now().Add(patience)))
	return w.client
}

func (w *world) get() probe.State {
	w.t.Helper()
	s, err := w.ask().Get()
	check(w.t, err)
	return s
}

func (w *world) status(h *lab.Host) ft.Row {
	w.t.Helper()
	r, err := ft.Status(within(w.t, soon), h, w.guest.Name)
	check(w.t, err)
	return r
}

// await waits until the status on a host is as ok wants it.
func (w *world) await(h *lab.Host, what string, ok func(ft.Row) bool) ft.Row {
	w.t.Helper()
	begun := time.Now()
	r, err := ft.Await(within(w.t, patience), h, w.guest.Name, what, ok)
	check(w.t, err)
	w.t.Logf("%s on %s after %v", what, h.Name(), round(time.Since(begun)))
	return r
}

func isProtected(r ft.Row) bool { return r.Protected }

// awaitUnprotected waits until the guest's host says that the guest is not protected, and checks that it says so in
// every way it has.
func (w *world) awaitUnprotected() {
	w.t.Helper()
	w.await(w.home, "unprotected", func(r ft.Row) bool { return !r.Protected && r.Role == "primary" })
	out, err := w.home.Run(within(w.t, soon), "xl", "ft-status", w.guest.Name)
	var ce *lab.CommandError
	if !errors.As(err, &ce) || ce.Status.Code != 1 || !strings.Contains(out, "Protected:") {
		w.t.Errorf("ft-status of an unprotected domain: %v\n%s", err, out)
		return
	}
	w.t.Logf("ft-status: exit status 1, %q", strings.TrimSpace(ce.Stderr))
	w.expectLog(w.home, "protection lost")
}

// expectLog checks that xlft's units said something on a host, and shows the last time they did.
func (w *world) expectLog(h *lab.Host, what string) {
	w.t.Helper()
	last := ""
	for line := range strings.Lines(ft.Journal(within(w.t, soon), h)) {
		if strings.Contains(line, what) {
			last = strings.TrimSpace(line)
		}
	}
	if last == "" {
		w.t.Errorf("no log line on %s has %q", h.Name(), what)
	}
	w.t.Logf("log of %s: %s", h.Name(), last)
}

// domains returns what runs on a host besides dom0.
func (w *world) domains(h *lab.Host) []string {
	w.t.Helper()
	all, err := h.Domains(within(w.t, soon))
	check(w.t, err)
	var names []string
	for _, d := range all {
		if d.ID != 0 {
			names = append(names, d.Name)
		}
	}
	return names
}

// awaitDomains waits until a host runs these domains and no others.
func (w *world) awaitDomains(h *lab.Host, want ...string) {
	w.t.Helper()
	w.until(soon, func() error {
		if got := w.domains(h); !slices.Equal(got, want) {
			return fmt.Errorf("host %s runs %q, want %q", h.Name(), got, want)
		}
		return nil
	})
}

// awaitClean waits until nothing of xlft is left in a host's network.
func (w *world) awaitClean(h *lab.Host) {
	w.t.Helper()
	w.until(soon, func() error {
		out, err := h.Run(within(w.t, soon), "sh", "-c", "tc qdisc show; ip -o link show type ifb")
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

// until waits until f, which asks hosts, returns nil. It leaves them time to get on.
func (w *world) until(d time.Duration, f func() error) {
	w.t.Helper()
	ctx := within(w.t, d)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			w.t.Fatal(err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// awaitTakeover waits until a host has the guest.
func (w *world) awaitTakeover(to *lab.Host) {
	w.t.Helper()
	w.await(to, "taken over", func(r ft.Row) bool { return r.Role == "owner" })
	w.home = to
}

// revive restores a host that was killed and puts xlft on it as it was.
func (w *world) revive(h *lab.Host) {
	w.t.Helper()
	begun := time.Now()
	check(w.t, h.Revive(within(w.t, patience)))
	check(w.t, ft.Reinstall(within(w.t, patience), h, w.saved[h]))
	w.t.Logf("%s is back with xlft after %v", h.Name(), round(time.Since(begun)))
}

// signal sends a signal to the processes on a host whose command line has a word.
func (w *world) signal(h *lab.Host, sig, word string) {
	w.t.Helper()
	h.Must(w.t, "pkill", "-"+sig, "-f", "/xlft "+word)
}

// report says what both hosts think, and where each protector is: its stacks are in the journal.
func (w *world) report() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	defer cancel()
	for _, h := range w.Hosts() {
		out, err := h.Run(ctx, "sh", "-c", "xl list; xl ft-status --json; ip -s link; tc -s qdisc show; dmesg | tail -n 30; systemctl kill --signal=QUIT --kill-who=main 'xlft@*.service'; journalctl --sync")
		w.t.Logf("state of %s (%v):\n%s", h.Name(), err, out)
		w.t.Logf("journal of %s:\n%s", h.Name(), ft.Journal(ctx, h))
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

//go:build linux

package xtfguest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"xlft/tests/lab"
)

// A Domain is a guest while it runs on one host.
type Domain struct {
	Host *lab.Host
	Name string
	ID   int
}

// Find returns the domain of that name on a host.
func Find(ctx context.Context, h *lab.Host, name string) (*Domain, error) {
	id, err := h.Domid(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Domain{h, name, id}, nil
}

func (d *Domain) path(node string) string { return fmt.Sprintf("/local/domain/%d/data/%s", d.ID, node) }

// Data reads a node under the domain's data. One that is not there is an error.
func (d *Domain) Data(ctx context.Context, node string) (string, error) {
	out, err := d.Host.Run(ctx, "xenstore-read", d.path(node))
	return strings.TrimSpace(out), err
}

// Console returns what the guest printed on this host, in this life or before.
func (d *Domain) Console(ctx context.Context) (string, error) {
	return d.Host.Run(ctx, "sh", "-c", "cat /var/log/xen/console/guest-$1*.log", "console", d.Name)
}

// AwaitConsole waits until the guest has printed text on this host.
func (d *Domain) AwaitConsole(ctx context.Context, text string) error {
	return lab.Await(ctx, func() error {
		out, err := d.Console(ctx)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("%s has not printed %q on %s:\n%s", d.Name, text, d.Host.Name(), out)
		}
		return err
	})
}

// A State is how far a counter is.
type State struct {
	Count uint64
	Sum   uint64
}

func (s State) String() string { return fmt.Sprintf("count %d sum %016x", s.Count, s.Sum) }

// State returns what a counter last published, which is a little old.
func (d *Domain) State(ctx context.Context) (State, error) {
	out, err := d.Data(ctx, "state")
	if err != nil {
		return State{}, err
	}
	var s State
	if _, err := fmt.Sscanf(out, "%d %x", &s.Count, &s.Sum); err != nil {
		return State{}, fmt.Errorf("%s published state %q: %w", d.Name, out, err)
	}
	return s, nil
}

// A Report is the answer of a counter that has checked all of its pages.
type Report struct {
	State
	Digest uint64
}

// A BadError is the answer of a counter that has found a wrong page.
type BadError struct{ Domain, Found string }

func (e *BadError) Error() string {
	return fmt.Sprintf("%s has lost its memory: %s", e.Domain, e.Found)
}

// Check makes a counter look at all of its pages. A wrong page is a [*BadError].
func (d *Domain) Check(ctx context.Context) (Report, error) {
	word := fmt.Sprintf("%08x", rand.Uint32())
	if _, err := d.Host.Run(ctx, "xenstore-write", d.path("check"), word); err != nil {
		return Report{}, err
	}
	var result string
	err := lab.Await(ctx, func() error {
		out, err := d.Data(ctx, "result")
		if err != nil {
			return err
		}
		var ok bool
		if result, ok = strings.CutPrefix(out, word+" "); !ok {
			return fmt.Errorf("%s has not answered the check %s: %q", d.Name, word, out)
		}
		return nil
	})
	if err != nil {
		return Report{}, err
	}
	var r Report
	if found, bad := strings.CutPrefix(result, "bad "); bad {
		return r, &BadError{d.Name, found}
	}
	if _, err := fmt.Sscanf(result, "ok %d %x %x", &r.Count, &r.Sum, &r.Digest); err != nil {
		return r, fmt.Errorf("%s answered %q: %w", d.Name, result, err)
	}
	return r, nil
}

// A Wake is the counter's return from a suspend.
type Wake struct {
	Suspend  uint64 // number of the suspend in the guest's life
	Restored bool   // into a new domain; else the suspend was cancelled
	State
}

// Wakes finds a counter's returns in what it printed.
func Wakes(console string) []Wake {
	var all []Wake
	for line := range strings.Lines(console) {
		var w Wake
		var how string
		if _, err := fmt.Sscanf(line, "%s suspend %d count %d sum %x\n", &how, &w.Suspend, &w.Count, &w.Sum); err != nil {
			continue
		}
		w.Restored = how == "restored"
		all = append(all, w)
	}
	return all
}

// Stall is what a dirty guest measured of the times when it did not run.
type Stall struct {
	Longest   time.Duration // longest of all, by the guest's TSC
	Suspended time.Duration // of the suspends that were cancelled
	Suspends  int           // how many of those
	Blackout  time.Duration // of the last restore, by the hosts' clocks
}

// Stall asks a dirty guest.
func (d *Domain) Stall(ctx context.Context) (Stall, error) {
	out, err := d.Data(ctx, "stall")
	if err != nil {
		return Stall{}, err
	}
	var longest, suspended, blackout int64
	var s Stall
	if _, err := fmt.Sscan(out, &longest, &suspended, &s.Suspends, &blackout); err != nil {
		return s, fmt.Errorf("%s published stall %q: %w", d.Name, out, err)
	}
	s.Longest = time.Duration(longest) * time.Microsecond
	s.Suspended = time.Duration(suspended) * time.Microsecond
	s.Blackout = time.Duration(blackout) * time.Microsecond
	return s, nil
}

// ResetStall makes a dirty guest reset its maxima.
func (d *Domain) ResetStall(ctx context.Context) error {
	_, err := d.Host.Run(ctx, "xenstore-write", d.path("reset"), "1")
	return err
}

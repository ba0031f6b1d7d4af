package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"xlft/evtchn"
	"xlft/xlft/internal/xen"
)

func (a *app) eventsCommand() *cobra.Command {
	var asJSON bool
	var interval time.Duration
	var count int
	c := &cobra.Command{
		Use:     "events [flags] DOMAIN",
		Short:   "show a domain's event channels, and how often it uses them",
		GroupID: "domain",
		Long: `Shows the ports of a domain: what each is bound to, the vCPU that it interrupts,
the device that uses it, and how many events a second the domain sends to the
device's backend in this dom0. Network devices are counted by port, other devices
as a whole; events between vCPUs, timers and what a backend tells the domain are
counted nowhere.

On a terminal the table is shown anew each interval until interrupted, otherwise
once. With --json each report is one object.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			fail := func(err error) error { return fmt.Errorf("events: %s: %w", args[0], err) }
			if interval < 10*time.Millisecond {
				return fail(fmt.Errorf("--interval %v is shorter than 10ms", interval))
			}
			out := cmd.OutOrStdout()
			live := isTerminal(out) && !asJSON
			if !live && count == 0 && !cmd.Flags().Changed("count") {
				count = 1
			}
			h, err := xen.Open()
			if err != nil {
				return fail(err)
			}
			defer h.Close()
			d, err := h.Lookup(args[0])
			if err != nil {
				return fail(err)
			}
			hv, err := evtchn.OpenHypervisor()
			if err != nil {
				return fail(err)
			}
			defer hv.Close()
			w := eventWatcher{
				domain: d,
				ports:  hv.Ports,
				uses:   func(domid uint32) map[evtchn.Port]evtchn.Use { return evtchn.Uses(xenstore{h}, domid) },
				count:  func(domid uint32) (evtchn.Counts, error) { return evtchn.Count(os.DirFS("/"), domid) },
			}
			if err := w.begin(); err != nil {
				return fail(err)
			}
			for n := 0; count == 0 || n < count; n++ {
				r, err := w.next(cmd.Context(), interval)
				if errors.Is(err, context.Canceled) && (live || n > 0) {
					return nil // that is how it ends
				}
				if err != nil {
					return fail(err)
				}
				if asJSON {
					err = printJSON(out, r)
				} else {
					err = r.print(out, live)
				}
				if err != nil {
					return fail(err)
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().DurationVar(&interval, "interval", time.Second, "time over which events are counted")
	c.Flags().IntVar(&count, "count", 0, "end after so many reports; 0: never (default 1 if not on a terminal)")
	return c
}

// xenstore is a host's, for evtchn.
type xenstore struct{ h *xen.Host }

func (x xenstore) Read(path string) string   { return x.h.XenstoreRead(path) }
func (x xenstore) List(path string) []string { return x.h.XenstoreList(path) }

// An eventWatcher makes reports of a domain's ports.
type eventWatcher struct {
	domain xen.Domain
	ports  func(domid uint32) ([]evtchn.State, error)
	uses   func(domid uint32) map[evtchn.Port]evtchn.Use
	count  func(domid uint32) (evtchn.Counts, error)

	last evtchn.Counts
	at   time.Time
}

// An eventReport is what is shown of a domain at a time.
type eventReport struct {
	Domain  string       `json:"domain"`
	Domid   uint32       `json:"domid"`
	Seconds float64      `json:"seconds"` // over which events were counted
	Ports   []portRow    `json:"ports"`
	Devices []deviceRate `json:"devices"`
}

type portRow struct {
	Port evtchn.Port `json:"port"`
	Kind string      `json:"kind"`
	VCPU uint32      `json:"vcpu"`
	Use  string      `json:"use,omitempty"`
	// Remote is the other end, or who may bind the port.
	Remote *remoteEnd `json:"remote,omitempty"`
	Rate   *float64   `json:"events_per_second,omitempty"` // nil: not counted
}

type remoteEnd struct {
	Domid uint32      `json:"domid"`
	Port  evtchn.Port `json:"port,omitempty"`
}

type deviceRate struct {
	Device string  `json:"device"`
	Rate   float64 `json:"events_per_second"`
}

func (w *eventWatcher) begin() (err error) {
	w.last, err = w.count(w.domain.ID)
	w.at = time.Now()
	return err
}

// next reports the ports after an interval, and the events of the time since the last
// report.
func (w *eventWatcher) next(ctx context.Context, interval time.Duration) (eventReport, error) {
	select {
	case <-time.After(time.Until(w.at.Add(interval))):
	case <-ctx.Done():
		return eventReport{}, context.Canceled
	}
	now, err := w.count(w.domain.ID)
	if err != nil {
		return eventReport{}, err
	}
	ports, err := w.ports(w.domain.ID)
	if errors.Is(err, evtchn.ErrNoDomain) {
		return eventReport{}, errors.New("the domain has ended")
	}
	if err != nil {
		return eventReport{}, err
	}
	last, at := w.last, w.at
	w.last, w.at = now, time.Now()
	return newEventReport(w.domain, ports, w.uses(w.domain.ID), last, now, w.at.Sub(at)), nil
}

func newEventReport(d xen.Domain, ports []evtchn.State, uses map[evtchn.Port]evtchn.Use, last, now evtchn.Counts, took time.Duration) eventReport {
	// Counts are 32 bits wide. A device that was connected anew counts from 0: its first
	// report is too low, and not a wrap.
	rate := func(last, now uint32) float64 {
		n := now - last
		if n > 1<<31 {
			n = now
		}
		return float64(n) / took.Seconds()
	}
	r := eventReport{Domain: d.Name, Domid: d.ID, Seconds: took.Seconds(), Ports: []portRow{}, Devices: []deviceRate{}}
	of := map[string]int{} // how many ports a device has
	for _, u := range uses {
		of[u.Device]++
	}
	for _, s := range ports {
		row := portRow{Port: s.Port, Kind: s.Kind.String(), VCPU: s.VCPU}
		switch s.Kind {
		case evtchn.Interdomain, evtchn.Unbound:
			row.Remote = &remoteEnd{s.Domain, s.RemotePort}
		case evtchn.VIRQ:
			row.Use = evtchn.VIRQName(s.IRQ)
		case evtchn.PIRQ:
			row.Use = fmt.Sprintf("irq %d", s.IRQ)
		}
		if u, ok := uses[s.Port]; ok && (s.Kind == evtchn.Interdomain || s.Kind == evtchn.Unbound) {
			row.Use = u.String()
			if n, ok := now.Of(u); ok {
				was, _ := last.Of(u)
				v := rate(was, n)
				row.Rate = &v
			} else if n, ok := now.Devices[u.Device]; ok && of[u.Device] == 1 {
				v := rate(last.Devices[u.Device], n)
				row.Rate = &v
			}
		}
		r.Ports = append(r.Ports, row)
	}
	for _, device := range slices.Sorted(maps.Keys(now.Devices)) {
		r.Devices = append(r.Devices, deviceRate{device, rate(last.Devices[device], now.Devices[device])})
	}
	return r
}

// print prints the report as a table, in the place of the last one if it is live.
func (r eventReport) print(out io.Writer, live bool) error {
	var b strings.Builder
	if live {
		b.WriteString("\033[H\033[J")
	}
	fmt.Fprintf(&b, "%s, domain %d: events in %.1f s\n", r.Domain, r.Domid, r.Seconds)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PORT\tKIND\tVCPU\tREMOTE\tEVENTS/S\tUSE")
	for _, p := range r.Ports {
		remote, rate := "-", "-"
		if p.Remote != nil {
			remote = strconv.FormatUint(uint64(p.Remote.Domid), 10)
			if p.Remote.Port > 0 {
				remote += ":" + strconv.FormatUint(uint64(p.Remote.Port), 10)
			}
		}
		if p.Rate != nil {
			rate = fmt.Sprintf("%.1f", *p.Rate)
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%s\n", p.Port, p.Kind, p.VCPU, remote, rate, p.Use)
	}
	w.Flush()
	if len(r.Devices) > 0 {
		fmt.Fprintln(w, "\nDEVICE\tEVENTS/S")
		for _, d := range r.Devices {
			fmt.Fprintf(w, "%s\t%.1f\n", d.Device, d.Rate)
		}
		w.Flush()
	}
	_, err := io.WriteString(out, b.String())
	return err
}

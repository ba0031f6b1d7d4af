//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"xlft/xlft/primary"
)

// A figure is what one row gave in one setup. Times are in nanoseconds.
type figure struct {
	Guest, Setup, Row string
	Rate              float64         `json:",omitempty"`
	Unit              string          `json:",omitempty"`
	Latencies         []time.Duration `json:",omitempty"` // sorted; of pgbench its mean alone
	Standstills       []time.Duration `json:",omitempty"` // the guest's longest in each second, sorted
	Dom0              float64         // processors that dom0 used
	Failed            string          `json:",omitempty"`

	Checkpoints float64 `json:",omitempty"` // a second

	// Of xlft.
	Reasons    map[string]float64 `json:",omitempty"` // these by what asked for them
	Pause      time.Duration      `json:",omitempty"` // median, as the next ones
	PauseWorst time.Duration      `json:",omitempty"`
	Suspend    time.Duration      `json:",omitempty"`
	Ack        time.Duration      `json:",omitempty"`
	Bytes      uint64             `json:",omitempty"` // of a checkpoint
	Wire       float64            `json:",omitempty"` // bytes a second
}

// finish fills in what a row cost.
func (f *figure) finish(took, cpu time.Duration, before, after *primary.Status) {
	slices.Sort(f.Latencies)
	slices.Sort(f.Standstills)
	f.Dom0 = cpu.Seconds() / took.Seconds()
	if before == nil || after == nil {
		return
	}
	f.Checkpoints = float64(after.Checkpoints-before.Checkpoints) / took.Seconds()
	f.Reasons = map[string]float64{}
	for why, n := range after.Reasons {
		if n -= before.Reasons[why]; n > 0 {
			f.Reasons[string(why)] = float64(n) / took.Seconds()
		}
	}
	n := after.Checkpoints - before.Checkpoints
	if n == 0 {
		return
	}
	f.Pause = (after.PauseSum.Total - before.PauseSum.Total) / time.Duration(n)
	f.Suspend = (after.PauseSum.Suspend - before.PauseSum.Suspend) / time.Duration(n)
	f.Ack = (after.AckSum - before.AckSum) / time.Duration(n)
	f.Bytes = (after.BytesSent - before.BytesSent) / n
	f.Wire = float64(after.WireBytes-before.WireBytes) / took.Seconds()
}

// quantile returns the q-th part of sorted values; 0 if there are none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// String is the cell of a table.
func (f figure) String() string {
	if f.Failed != "" {
		return "failed: " + f.Failed
	}
	var parts []string
	if f.Unit != "" {
		parts = append(parts, number(f.Rate))
	}
	switch len(f.Latencies) {
	case 0:
	case 1:
		parts = append(parts, fmt.Sprint(round(f.Latencies[0])))
	default:
		parts = append(parts, fmt.Sprintf("%v / %v", round(quantile(f.Latencies, 0.5)), round(quantile(f.Latencies, 0.99))))
	}
	if len(f.Standstills) > 0 {
		parts = append(parts, fmt.Sprintf("%v / %v", round(quantile(f.Standstills, 0.5)), round(quantile(f.Standstills, 0.99))))
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, "; ")
}

func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// A death is what a client saw of the death of the guest's host.
type death struct {
	Guest, Setup     string
	Spoke, Reply     time.Duration // from the death until the guest's first frame, and the first reply
	Answered, Untrue int           // orders that were answered, and answers that the guest does not stand by
}

func (d death) String() string {
	return fmt.Sprintf("the guest spoke after %v, the client went on after %v; %d orders answered, %d of them lost", round(d.Spoke), round(d.Reply),
		d.Answered, d.Untrue)
}

// results are all that was measured.
type results struct {
	Begun   time.Time
	Hosts   string
	Figures []figure
	Deaths  []death
}

func (r *results) begin(ctx context.Context, b *bench) {
	r.Begun = time.Now()
	out, err := b.home.Run(ctx, "sh", "-c", "xl info xen_version; uname -r; /usr/local/sbin/xlft version 2>/dev/null | head -1")
	if err != nil {
		out = err.Error()
	}
	r.Hosts = strings.Join(strings.Fields(out), " ")
}

func (r *results) add(f figure) { r.Figures = append(r.Figures, f) }
func (r *results) died(d death) { r.Deaths = append(r.Deaths, d) }

// write prints the tables, and puts them, the raw figures and the plots into a directory.
func (r *results) write(dir string, w io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var md strings.Builder
	r.tables(&md)
	fmt.Fprint(w, md.String())
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	files := map[string][]byte{"tables.md": []byte(md.String()), "raw.json": append(raw, '\n')}
	for _, g := range r.guests() {
		files[g+".svg"] = r.plot(g)
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nThe tables, the raw figures and plots are in %s.\n", dir)
	return nil
}

// guests, setups and rows are in the order in which they were measured.
func (r *results) guests() []string { return r.distinct("", func(f figure) string { return f.Guest }) }

func (r *results) setups(guest string) []string {
	return r.distinct(guest, func(f figure) string { return f.Setup })
}

func (r *results) rows(guest string) []string {
	return r.distinct(guest, func(f figure) string { return f.Row })
}

func (r *results) distinct(guest string, of func(figure) string) (all []string) {
	for _, f := range r.Figures {
		if v := of(f); (guest == "" || f.Guest == guest) && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

func (r *results) find(guest, setup, row string) (figure, bool) {
	for _, f := range r.Figures {
		if f.Guest == guest && f.Setup == setup && f.Row == row {
			return f, true
		}
	}
	return figure{}, false
}

// tables writes all tables in Markdown.
func (r *results) tables(w io.Writer) {
	fmt.Fprintf(w, "Xen and Linux %s. %s.\n", r.Hosts, r.Begun.Format(time.DateOnly))
	for _, g := range r.guests() {
		setups := r.setups(g)
		fmt.Fprintf(w, "\n%s: rate; median / 99th hundredth of the answers' time, or of the longest standstill in each second\n\n| |", g)
		head(w, setups)
		for _, row := range r.rows(g) {
			line := "| " + row
			for i, s := range setups {
				f, ok := r.find(g, s, row)
				if !ok {
					line += " | "
					continue
				}
				if i == 0 && f.Unit != "" {
					line = strings.Replace(line, row, row+", "+f.Unit, 1)
				}
				line += " | " + f.String()
				if alone, ok := r.find(g, unprotected, row); ok && i > 0 && f.Failed == "" && alone.Rate > 0 {
					line += fmt.Sprintf(" (%.2g)", f.Rate/alone.Rate)
				}
			}
			fmt.Fprintln(w, line+" |")
		}
		fmt.Fprintf(w, "\n%s: what it cost: processors that dom0 used; checkpoints a second, pause (of it suspend), ack, KiB a checkpoint, KiB a second on the wire\n\n| |", g)
		head(w, setups)
		for _, row := range r.rows(g) {
			line := "| " + row
			for _, s := range setups {
				f, ok := r.find(g, s, row)
				if line += " | "; !ok || f.Failed != "" {
					continue
				}
				line += fmt.Sprintf("%.2f", f.Dom0)
				switch {
				case f.Pause == 0 && f.Checkpoints > 0:
					line += fmt.Sprintf("; %.1f", f.Checkpoints)
				case f.Checkpoints > 0:
					line += fmt.Sprintf("; %.1f (%s), %v (%v), %v, %d, %.0f", f.Checkpoints, reasons(f.Reasons), round(f.Pause), round(f.Suspend),
						round(f.Ack), f.Bytes>>10, f.Wire/1024)
				}
			}
			fmt.Fprintln(w, line+" |")
		}
	}
	if len(r.Deaths) > 0 {
		fmt.Fprintf(w, "\nThe host dies while orders come in:\n\n")
	}
	for _, d := range r.Deaths {
		fmt.Fprintf(w, "- %s: %s\n", d.Setup, d)
	}
}

func head(w io.Writer, setups []string) {
	fmt.Fprintln(w, " "+strings.Join(setups, " | ")+" |")
	fmt.Fprintln(w, "|---|"+strings.Repeat("---|", len(setups)))
}

func reasons(all map[string]float64) string {
	var names []string
	for why := range all {
		names = append(names, why)
	}
	slices.SortFunc(names, func(a, b string) int {
		if all[a] != all[b] {
			return map[bool]int{true: -1, false: 1}[all[a] > all[b]]
		}
		return strings.Compare(a, b)
	})
	for i, why := range names {
		names[i] = fmt.Sprintf("%s %.1f", why, all[why])
	}
	return strings.Join(names, ", ")
}

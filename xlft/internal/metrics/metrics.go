// Package metrics prints what a host knows of its domains for Prometheus, in the text
// format (https://prometheus.io/docs/instrumenting/exposition_formats) and by its names
// (https://prometheus.io/docs/practices/naming). Counters begin anew with each session.
//
// The one rule a caller must know: a metric that is not known is left out. It is never 0
// instead.
package metrics

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"xlft/xlft/internal/overview"
)

// A Host is what is printed.
type Host struct {
	Version string
	Drained bool
	Rows    []overview.Row
}

// A family is a metric with its samples.
type family struct {
	name, kind, help string
	samples          []string
}

type families struct {
	all   []*family
	named map[string]*family
}

// add adds a sample. Labels are names and values in turn.
func (fs *families) add(kind, name, help string, value float64, labels ...string) {
	f := fs.named[name]
	if f == nil {
		f = &family{name: "xlft_" + name, kind: kind, help: help}
		fs.named[name] = f
		fs.all = append(fs.all, f)
	}
	var b strings.Builder
	b.WriteString(f.name)
	for i := 0; i < len(labels); i += 2 {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(labels[i] + `="` + escaper.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		b.WriteByte('}')
	}
	f.samples = append(f.samples, b.String()+" "+strconv.FormatFloat(value, 'g', -1, 64))
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (fs *families) gauge(name, help string, value float64, labels ...string) {
	fs.add("gauge", name, help, value, labels...)
}

func (fs *families) counter(name, help string, value float64, labels ...string) {
	fs.add("counter", name, help, value, labels...)
}

// time adds the time of an event, unless there was none.
func (fs *families) time(name, help string, t time.Time, labels ...string) {
	if !t.IsZero() {
		fs.gauge(name, help, float64(t.UnixMilli())/1000, labels...)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Write prints all metrics of a host.
func Write(w io.Writer, h Host) error {
	fs := &families{named: map[string]*family{}}
	fs.gauge("build_info", "Version of xlft; the value is 1.", 1, "version", h.Version)
	fs.gauge("host_drained", "Whether this host takes no copies of other hosts' domains, as its operator asked.", truth(h.Drained))
	for _, r := range h.Rows {
		fs.row(r)
	}
	paths := map[string]bool{}
	for _, r := range h.Rows {
		for _, p := range r.Paths {
			if k := p.Peer + " " + p.Address; !paths[k] {
				paths[k] = true
				fs.gauge("path_up", "Whether a peer that has several addresses is reached at this one.", truth(p.Up), "peer", p.Peer, "address", p.Address)
			}
		}
	}
	for _, f := range fs.all {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s\n", f.name, f.help, f.name, f.kind, strings.Join(f.samples, "\n")); err != nil {
			return err
		}
	}
	return nil
}

func (fs *families) row(r overview.Row) {
	d := []string{"domain", r.Domain, "role", string(r.Role)}
	fs.gauge("protected", "Whether the domain would survive the loss of its host now.", truth(r.Protected), append(d, "peer", r.Peer)...)
	fs.gauge("state", "The state of the protection, as xl ft-status shows it; the value is 1.", 1, append(d, "state", r.State)...)
	fs.gauge("generation", "Counts the changes of who may run the domain.", float64(r.Generation), d...)
	since := time.Time{}
	if u := r.Unprotected; u != nil {
		since = u.Since
	}
	if s := r.Primary; s != nil {
		since = s.Lacking
		fs.primary(r, d)
	}
	fs.time("unprotected_since_timestamp_seconds", "Since when the domain would not survive the loss of its host.", since, d...)
	if s := r.Backup; s != nil {
		if !s.Health.At.IsZero() {
			fs.gauge("arbiter_ready", "Whether the arbiter could decide when it was last asked.", truth(s.Health.Error == ""), append(d, "arbiter", s.Arbiter)...)
		}
		fs.counter("received_bytes_total", "Bytes of checkpoints that came here.", float64(s.Bytes), d...)
		fs.gauge("page_cache_bytes", "Memory for pages of which only changes are sent.", float64(s.PageCache), d...)
		if s.RestoreMedian > 0 {
			fs.gauge("restore_median_seconds", "What a checkpoint takes this host's restore: the median of the last 64.", s.RestoreMedian.Seconds(), d...)
		}
		fs.time("last_ack_timestamp_seconds", "When the newest checkpoint was acknowledged.", s.LastAck, d...)
	}
}

// primary adds what only a protector knows.
func (fs *families) primary(r overview.Row, d []string) {
	s := r.Primary
	if !s.Health.At.IsZero() {
		fs.gauge("arbiter_ready", "Whether the arbiter could decide when it was last asked.", truth(s.Health.Error == ""), append(d, "arbiter", s.Arbiter)...)
	}
	for _, why := range slices.SortedFunc(maps.Keys(s.Reasons), cmp.Compare) {
		fs.counter("checkpoints_total", "Checkpoints that were acknowledged, by what asked for them.", float64(s.Reasons[why]), append(d, "reason", string(why))...)
	}
	for _, p := range []struct {
		part        string
		sum, median time.Duration
	}{
		{"suspend", s.PauseSum.Suspend, s.PauseMedian.Suspend}, {"seal", s.PauseSum.Seal, s.PauseMedian.Seal},
		{"capture", s.PauseSum.Capture, s.PauseMedian.Capture}, {"ack", s.PauseSum.Ack, s.PauseMedian.Ack},
		{"resume", s.PauseSum.Resume, s.PauseMedian.Resume},
	} {
		part := append(d, "part", p.part)
		fs.counter("pause_seconds_total", "Time for which the domain stood still for checkpoints, by part.", p.sum.Seconds(), part...)
		fs.gauge("pause_median_seconds", "The same of one checkpoint: the median of the last 1024.", p.median.Seconds(), part...)
	}
	fs.gauge("pause_worst_seconds", "The longest standstill of the last 1024 checkpoints.", s.PauseWorst.Total.Seconds(), d...)
	fs.counter("ack_seconds_total", "Time from the end of the standstill to the acknowledgement, of all checkpoints.", s.AckSum.Seconds(), d...)
	fs.gauge("ack_median_seconds", "The same of one checkpoint: the median of the last 1024.", s.AckMedian.Seconds(), d...)
	fs.counter("sent_pages_total", "Pages of checkpoints that were sent.", float64(s.PagesSent), d...)
	fs.counter("sent_bytes_total", "Bytes of checkpoints before they are made small.", float64(s.BytesSent), d...)
	fs.counter("wire_bytes_total", "Bytes that these took between the hosts.", float64(s.WireBytes), d...)
	fs.gauge("page_cache_bytes", "Memory for pages of which only changes are sent.", float64(s.PageCache), d...)
	fs.counter("held_seconds_total", "Time for which the domain was paused since it wrote faster than it could be copied.", s.HeldTime.Seconds(), d...)
	if s.HeldLimit > 0 {
		fs.gauge("held_output_bytes", "Memory of the output that waits for an acknowledgement.", float64(s.HeldBytes), d...)
		fs.gauge("held_output_limit_bytes", "Its limit, net_buffer.", float64(s.HeldLimit), d...)
	}
	fs.gauge("split_brain", "Whether the backup runs the domain too.", truth(s.SplitBrain), d...)
	fs.time("last_ack_timestamp_seconds", "When the newest checkpoint was acknowledged.", s.LastAck, d...)
	for _, disk := range s.Disks {
		fs.gauge("disk_in_sync", "Whether the backup's copy of a disk is complete.", truth(disk.Synced), append(d, "vdev", disk.VDev)...)
	}
}

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/paths"
	"xlft/xlft/internal/steward"
	"xlft/xlft/primary"
)

func TestPrintRow(t *testing.T) {
	st := primary.Status{
		State: primary.Syncing, PeerAddress: "192.0.2.2:7789", Arbiter: "fence", Epoch: 7, Checkpoints: 6, PagesSent: 1200, BytesSent: 5 << 20,
		SyncBytes: 64 << 20, SyncTotal: 128 << 20, HeldBytes: 2048, HeldLimit: 8192, LastError: "silent for 1s",
		Holding: true, Holds: 3, HeldTime: 1500 * time.Millisecond,
		PauseMedian: primary.Downtime{Suspend: time.Millisecond, Total: 3 * time.Millisecond},
		Reasons:     map[primary.Why]uint64{primary.WhyFirst: 1, primary.WhyInterval: 1, primary.WhyEvent: 4},
		Pacing:      xlft.Pacing{Mode: xlft.ModeEvent, EpochMax: time.Second}, Window: 12 * time.Millisecond, Watching: "eBPF",
		Disks: []xlft.DiskProgress{
			{VDev: "xvda", Progress: diskrepl.Progress{Synced: true}},
			{VDev: "xvdb", Progress: diskrepl.Progress{Known: true, Compared: 10 << 20, Total: 40 << 20}},
			{VDev: "xvdc", Progress: diskrepl.Progress{Compared: 10 << 20, Total: 40 << 20, Sent: 3 << 20}},
		},
	}
	var b strings.Builder
	if err := printRow(&b, overview.Row{Domain: "web1", Role: overview.Primary, Peer: "beta", State: "syncing", Generation: 3, Primary: &st, Paths: []paths.Path{
		{Address: "198.51.100.2:7789", Since: time.Now().Add(-90 * time.Second), Error: "i/o timeout"}, {Address: "192.0.2.2:7789", Up: true}}}); err != nil {
		t.Fatal(err)
	}
	const want = `Domain:            web1
Role of this host:  primary
Peer:              beta, at 192.0.2.2:7789
  path 198.51.100.2:7789: broken, since 1m30s ago: i/o timeout
  path 192.0.2.2:7789: whole
Protected:         no
State:             syncing
Generation:        3
Arbiter:           fence
Newest epoch:      7, acked never
Checkpoints:       6, 1200 pages, 5 MiB sent
  started by:      event 4, epoch_max 1, first 1
Mode:              event, output waits until the domain has run for 12ms, epochs of at most 1s
Output noticed by: eBPF
Pause:             median 3ms, worst 0s
  of the median:   suspend 1ms, seal 0s, capture 0s, resume 0s
Ack after resume:  median 0s
Per checkpoint:    median 0 KiB, as 0 KiB; 0 MiB of pages are kept for that
Held for the backup: now, 3 times, 1.5s in all
Output held:       2 of 8 KiB
Disk xvda:         in sync
Disk xvdb:         sending what was written since, 10 of 40 MiB
Disk xvdc:         copying, 10 of 40 MiB compared, 3 MiB differed
First copy:        64 of about 128 MiB
Last error:        silent for 1s
`
	if got := b.String(); squeeze(got) != squeeze(want) {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
}

// A strict checkpoint's pause has the wait for the ack as a part, and the mode has no
// window.
func TestPrintStrict(t *testing.T) {
	st := primary.Status{
		Pacing: xlft.Pacing{Mode: xlft.ModeStrict, EpochMax: time.Second}, Watching: "polling (no eBPF)",
		PauseMedian: primary.Downtime{Suspend: time.Millisecond, Ack: 2 * time.Millisecond, Total: 3 * time.Millisecond},
	}
	var b strings.Builder
	if err := printRow(&b, overview.Row{Domain: "web1", Primary: &st}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Mode: strict, epochs of at most 1s", "Output noticed by: polling (no eBPF)", "suspend 1ms, seal 0s, capture 0s, ack 2ms, resume 0s"} {
		if got := squeeze(b.String()); !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// A backup that waits for its arbiter says why.
func TestPrintBackup(t *testing.T) {
	st := backup.Status{State: backup.Claiming, Arbiter: "fence", Epoch: 7, Restored: 6, RestoreMedian: 12 * time.Millisecond, Bytes: 3 << 20, LastError: "ask the arbiter (fence): no route to host"}
	var b strings.Builder
	if err := printRow(&b, overview.Row{Domain: "web1", Role: overview.Backup, Peer: "alpha", State: "claiming", Generation: 3, Backup: &st}); err != nil {
		t.Fatal(err)
	}
	const want = `Domain:            web1
Role of this host:  backup
Peer:              alpha
Protected:         no
State:             claiming
Decide by:         xl ft-resolve web1
Generation:        3
Arbiter:           fence
Newest epoch:      7, acked never
Restored:          epoch 6, each in 12ms (median)
Received:          3 MiB
Last error:        ask the arbiter (fence): no route to host
`
	if got := b.String(); squeeze(got) != squeeze(want) {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
}

// A domain that is protected while no arbiter could decide has an exit status of its own.
func TestNoArbiter(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "xlft.toml")
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+dir+"\"\nstate_dir = \""+dir+"\"\n[arbiter]\ntype = \"manual\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := func(name string, answers map[string]any) {
		l, err := control.Listen(control.Socket(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		for pattern, answer := range answers {
			control.Handle(mux, pattern, func(*http.Request) (any, error) { return answer, nil })
		}
		srv := &http.Server{Handler: mux}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
	}
	bad := xlft.Health{At: time.Now(), Error: "fence agent of beta: bad password"}
	daemon("web1", map[string]any{"GET /status": primary.Status{Domain: "web1", State: primary.Protected, Protected: true, Arbiter: "fence", Health: bad}})
	daemon("web2", map[string]any{"GET /status": primary.Status{Domain: "web2", Peer: "beta", State: primary.Protected, Protected: true, Arbiter: "fence", Health: xlft.Health{At: time.Now()}}})
	daemon("web3", map[string]any{"GET /status": primary.Status{Domain: "web3", State: primary.Syncing, Arbiter: "fence", Health: bad}})
	daemon(control.Receiver, map[string]any{"GET /replicas": []backup.Status{{Domain: "db", State: backup.Ready, Health: bad}}, "GET /conflicts": []backup.Conflict{}, "GET /unprotected": []steward.Status{
		{Domain: "mail", Since: time.Now().Add(-time.Minute), Next: time.Now().Add(time.Hour), Why: "beta: it is down\ngamma: no memory"},
		{Domain: "shop", Since: time.Now(), Stopped: true},
	}})
	for domain, want := range map[string]struct {
		status int
		text   string
	}{
		"web1": {2, "Protected: yes, but no arbiter"},
		"web2": {0, "Arbiter: fence, could decide (asked 0s ago)"},
		"web3": {1, "Protected: no"},
		"mail": {1, "Last error: beta: it is down; gamma: no memory"},
		"shop": {1, "Protect by: xl ft-start shop"},
		"db":   {2, "could not decide (asked 0s ago): fence agent of beta: bad password"},
	} {
		out, _, status := runStatus(t, "--config", conf, "ft-status", domain)
		if status != want.status || !strings.Contains(squeeze(out), want.text) {
			t.Errorf("%s: exit status %d, want %d, and printed\n%s", domain, status, want.status, out)
		}
	}
	if out, _ := run(t, "--config", conf, "ft-list"); !strings.Contains(squeeze(out), "protected, no arbiter") || !strings.Contains(squeeze(out), "web2 primary beta protected 0") {
		t.Errorf("ft-list prints\n%s", out)
	}
}

// squeeze makes one space of each run of spaces.
func squeeze(s string) string {
	var lines []string
	for l := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	return strings.Join(lines, "\n")
}

// On anything but a terminal the progress is a line for each state; the disk
// that is furthest behind holds the rest up.
func TestProgress(t *testing.T) {
	var b strings.Builder
	bar := newBar(&b, "web1")
	disk := func(compared int64) []xlft.DiskProgress {
		return []xlft.DiskProgress{{VDev: "xvda", Progress: diskrepl.Progress{Compared: compared, Total: 100}}}
	}
	bar.show(primary.Status{State: primary.Connecting})
	bar.show(primary.Status{State: primary.Syncing, Disks: disk(10), SyncTotal: 100})
	bar.show(primary.Status{State: primary.Syncing, Disks: disk(20), SyncTotal: 100})
	bar.show(primary.Status{State: primary.Syncing, SyncBytes: 50, SyncTotal: 100})
	bar.end("protected by beta")
	const want = "web1: connecting\nweb1: syncing, disk xvda\nweb1: syncing\nweb1: protected by beta\n"
	if got := b.String(); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
}

package metrics

import (
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"xlft/diskrepl"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/paths"
	"xlft/xlft/internal/steward"
	"xlft/xlft/primary"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew; read it before committing")

// All metrics in a golden file, which Prometheus' own tool accepts.
func TestWrite(t *testing.T) {
	at := time.UnixMilli(1795000000500)
	ms := time.Millisecond
	part := primary.Downtime{Total: 9 * ms, Suspend: 4 * ms, Seal: ms, Capture: 3 * ms, Resume: ms}
	h := Host{Version: `1.0 "odd\`, Rows: []overview.Row{
		{Domain: "db", Role: overview.Backup, Peer: "beta", State: "ready", Protected: true, Generation: 2,
			Backup: &backup.Status{RestoreMedian: 12 * ms, Arbiter: "fence", Health: xlft.Health{At: at}, LastAck: at, Bytes: 12345, PageCache: 4096}},
		{Domain: "lone", Role: overview.None, State: overview.Unprotected, Unprotected: &steward.Status{Since: at}},
		{Domain: "new", Role: overview.Primary, Peer: "beta", State: "syncing", Primary: &primary.Status{}},
		{Domain: "web1", Role: overview.Primary, Peer: "beta", State: "protected", Protected: true, Generation: 7, Paths: []paths.Path{{Peer: "beta", Address: "192.0.2.2:7789", Up: true}, {Peer: "beta", Address: "198.51.100.2:7789"}}, Primary: &primary.Status{
			Arbiter: "fence", Health: xlft.Health{At: at, Error: "no route to host"}, LastAck: at, Reasons: map[primary.Why]uint64{primary.WhyEvent: 40, primary.WhyInterval: 2},
			PauseSum: part, PauseMedian: part, PauseWorst: part, AckSum: 3 * time.Second, AckMedian: 5 * ms, PagesSent: 42000, BytesSent: 1 << 28, WireBytes: 1 << 24,
			PageCache: 1 << 20, HeldTime: 250 * ms, HeldBytes: 100, HeldLimit: 64 << 20,
			Disks: []xlft.DiskProgress{{VDev: "xvda", Progress: diskrepl.Progress{Synced: true}}, {VDev: "xvdb"}},
		}},
	}}
	var b strings.Builder
	if err := Write(&b, h); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/metrics.prom"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || b.String() != string(want) {
		t.Errorf("printed\n%s\nwant %s (%v)", b.String(), golden, err)
	}
	tool := os.Getenv("PROMTOOL")
	if tool == "" {
		tool = "promtool"
	}
	path, err := exec.LookPath(tool)
	if err != nil {
		if os.Getenv("XLFT_PEERS_REQUIRED") != "" {
			t.Fatal(err)
		}
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	cmd := exec.Command(path, "check", "metrics")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

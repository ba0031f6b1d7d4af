package processes_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"xlft/tests/processes"
)

var (
	procFor     = flag.Duration("proc.for", 16*time.Second, "how long hosts are tormented, for each arbiter")
	procSeed    = flag.Uint64("proc.seed", 0, "the faults' seed; 0: any")
	procArbiter = flag.String("proc.arbiter", "", "run with this arbiter only")
	procFaults  = flag.String("proc.faults", "", "only faults whose names match")
	procRace    = flag.Bool("proc.race", false, "build xlft with the race detector")
	procQuiet   = flag.Bool("proc.quiet", false, "with -v too, print the story only of what failed")
	procKeep    = flag.Bool("proc.keep", false, "keep the hosts' files, with the logs, in any case")
)

func TestMain(m *testing.M) {
	processes.Agent()
	code := m.Run()
	os.RemoveAll(filepath.Dir(unbroken))
	os.Exit(code)
}

// unbroken is xlft, once it is built.
var unbroken string

func xlft(t *testing.T) string {
	t.Helper()
	if unbroken == "" {
		dir, err := os.MkdirTemp("", "xlft-")
		if err != nil {
			t.Fatal(err)
		}
		unbroken = filepath.Join(dir, "xlft")
		build(t, unbroken, "")
	}
	return unbroken
}

// build builds xlft for simulated hosts, with files of another content in the place
// of some.
func build(t *testing.T, bin, overlay string) {
	t.Helper()
	args := []string{"build", "-tags", "simxen", "-o", bin}
	if *procRace {
		args = append(args, "-race")
	}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./xlft/cmd/xlft")...)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build xlft: %v\n%s", err, out)
	}
}

func run(t *testing.T, o processes.Options) processes.Report {
	t.Helper()
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano()) % 1e9
	}
	var err error
	if o.Dir, err = os.MkdirTemp("", "xlftp"); err != nil { // t.TempDir is too long for sockets
		t.Fatal(err)
	}
	if testing.Verbose() && !*procQuiet {
		o.Story = os.Stderr
	}
	if *procFaults != "" && o.Faults == nil {
		o.Faults = regexp.MustCompile(*procFaults)
	}
	t.Logf("seed %d", o.Seed)
	r, err := processes.Run(o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Violations) > 0 && !o.Broken || *procKeep {
		t.Logf("the hosts' files: %s", o.Dir)
	} else {
		os.RemoveAll(o.Dir)
	}
	return r
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("it needs root: for network namespaces, and to take processes their time")
	}
	for _, p := range []string{"ip", "tc", "bridge", "mount"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("there is no %s on this machine", p)
		}
	}
}

func TestProcesses(t *testing.T) {
	needRoot(t)
	for _, arbiter := range []string{"fence", "none"} {
		if *procArbiter != "" && *procArbiter != arbiter {
			continue
		}
		t.Run(arbiter, func(t *testing.T) {
			r := run(t, processes.Options{Binary: xlft(t), Arbiter: arbiter, Seed: *procSeed, For: *procFor})
			judge(t, r)
		})
	}
}

func judge(t *testing.T, r processes.Report) {
	t.Helper()
	t.Log(summary(r))
	for _, v := range r.Violations {
		t.Error(v)
	}
	if t.Failed() {
		t.Logf("the story:\n%s", strings.Join(r.Story, "\n"))
	}
}

// A restore worker that dies when the domain has its name, and is not unpaused yet,
// leaves the last step to the receiver, or to the next one.
func TestWorkerDies(t *testing.T) {
	needRoot(t)
	for _, fault := range []string{"after its rename", "after its rename, with the receiver"} {
		t.Run(fault, func(t *testing.T) {
			r := run(t, processes.Options{Binary: xlft(t), Arbiter: "fence", For: 2 * time.Second, Faults: regexp.MustCompile(fault + "$")})
			judge(t, r)
			if r.Counts.Takeovers == 0 {
				t.Error("the domain was not taken over")
			}
		})
	}
}

// A protector whose record can't be read has decided nothing, and comes back until
// it can be read.
func TestDamagedRecord(t *testing.T) {
	needRoot(t)
	r := run(t, processes.Options{Binary: xlft(t), Arbiter: "none", For: 2 * time.Second, Faults: regexp.MustCompile("damage its record$")})
	judge(t, r)
}

// A protector that is killed while it has the domain paused, to take its gate down,
// is followed by one that lets the domain run.
func TestKilledWhilePaused(t *testing.T) {
	needRoot(t)
	r := run(t, processes.Options{Binary: xlft(t), Arbiter: "none", For: 4 * time.Second, Faults: regexp.MustCompile("^kill the protector (before|after) its ")})
	judge(t, r)
}

func summary(r processes.Report) string {
	c := r.Counts
	var faults []string
	n := 0
	for k, v := range c.Faults {
		faults = append(faults, fmt.Sprintf("  %4d %s", v, k))
		n += v
	}
	slices.Sort(faults)
	return fmt.Sprintf("%v: %d operations (%d unanswered, %d checked), %d takeovers, %d hosts fenced, %d times lost by several faults, %d faults:\n%s",
		r.Took.Round(time.Second), c.Operations, c.Unanswered, c.Checked, c.Takeovers, c.Fences, c.Lost, n, strings.Join(faults, "\n"))
}

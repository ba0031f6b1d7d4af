// Package spin checks the model of the takeover, takeover.pml, with spin (https://spinroot.com).
package spin

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// broken are the rules that each broken model lacks.
var broken = []string{
	1: "a release looks for a later word first",
	2: "output waits for the ack of its checkpoint",
	3: "an answer of the arbiter that was not heard is none",
	4: "a backup runs the domain only if it has won it",
	5: "a successor asks who owns the domain",
	6: "a switch-over is recorded before the backup is told",
	7: "of a domain that was handed over only the backup knows whether it runs",
}

var (
	errorsFound = regexp.MustCompile(`errors: (\d+)`)
	truncated   = regexp.MustCompile(`(?i)max search depth too small|out of memory|Search not completed`)
)

// check checks the model and returns what pan, the checker that spin writes, says, and whether it found an error.
func check(t *testing.T, breaks, faults int) (string, bool) {
	t.Helper()
	spin, err := exec.LookPath("spin")
	if err != nil {
		if os.Getenv("XLFT_PEERS_REQUIRED") != "" {
			t.Fatal(err)
		}
		t.Skip("spin is not installed (Debian: spin)")
	}
	model, err := filepath.Abs("takeover.pml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run(spin, fmt.Sprint("-DBREAK=", breaks), fmt.Sprint("-DFAULTS=", faults), "-a", model)
	run("gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=4000", "-o", "pan", "pan.c")
	out := run("./pan", "-m100000")
	m := errorsFound.FindStringSubmatch(out)
	if m == nil || truncated.MatchString(out) && m[1] == "0" {
		t.Fatalf("it was not checked to the end:\n%s", out)
	}
	return out, m[1] != "0"
}

func TestTakeover(t *testing.T) {
	out, bad := check(t, 0, 3)
	if bad {
		t.Errorf("the model fails; \"spin -DFAULTS=3 -a takeover.pml\", \"gcc -DSAFETY -o pan pan.c\", \"./pan\" and \"spin -DFAULTS=3 -t -p takeover.pml\" show how:\n%s", out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "states, stored") {
			t.Log("three faults: ", strings.TrimSpace(line))
		}
	}
}

// Each broken model fails.
func TestBroken(t *testing.T) {
	for n, rule := range broken {
		if n == 0 {
			continue
		}
		t.Run(strings.ReplaceAll(rule, " ", "-"), func(t *testing.T) {
			if out, bad := check(t, n, 2); !bad {
				t.Errorf("without the rule that %s it passes:\n%s", rule, out)
			}
		})
	}
}

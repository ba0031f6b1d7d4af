package processes_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"xlft/tests/processes"
)

var procCatches = flag.Bool("proc.catches", false, "run what must be caught, too: minutes")

// A variant is xlft with one of its promises broken on purpose: in a file, a text
// that is there once becomes another.
type variant struct {
	name, arbiter, faults string
	file, from, to        string
	want                  string // how a violation begins
	also                  []edit // what would prevent it as well
}

type edit struct{ file, from, to string }

var variants = []variant{
	{
		"what came while a process stood still is not looked at", "fence", "^stop the receiver$",
		"xlft/wire/control.go",
		"end := bound(p.silence-lastLook, p.SetReadDeadline)\n\tn, err := p.Conn.Read(b)\n\tend()",
		"p.SetReadDeadline(time.Now().Add(p.silence))\n\tn, err := p.Conn.Read(b)\n\tif n == 0 {\n\t\treturn n, err\n\t}",
		"C1",
		[]edit{{"xlft/internal/arbiter/evidence.go", "return a.evidence(ctx, c)", "return a.settle(ctx, c)"}},
	},
	{
		"an epoch leaves when it is sealed", "fence", "^power cut at the primary after",
		"netbuffer/gate.go",
		"g.holding, g.sealed, g.epoch = true, true, epoch\n",
		"g.holding, g.sealed, g.epoch = true, true, epoch\n\tfor _, v := range g.vifs {\n\t\tv.Path.Change(1-v.Current, Pass)\n\t}\n",
		"P1",
		nil,
	},
	{
		"a successor lets out what it finds held", "none", "kill the protector",
		"xlft/primary/session.go",
		"s.decider = decider{s.Peer, s.Dial, 0}\n",
		"s.decider = decider{s.Peer, s.Dial, 0}\n\tif s.FoundHolding {\n\t\ts.Gates.ReleaseAll()\n\t}\n",
		"P1",
		nil,
	},
	{
		"a backup gives its copy up when it loses its primary", "none", "^power cut at the primary$|^kill the protector$",
		"xlft/backup/machine.go",
		"if m.state == Syncing {\n\t\t\treturn m.destroy(",
		"if m.state == Syncing || !m.handed {\n\t\t\treturn m.destroy(",
		"P5: one copy",
		nil,
	},
}

// What is broken on purpose is noticed.
func TestCatches(t *testing.T) {
	needRoot(t)
	if !*procCatches {
		t.Skip("it takes minutes: -proc.catches")
	}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			dir, replace := t.TempDir(), map[string]string{}
			for i, e := range append(v.also, edit{v.file, v.from, v.to}) {
				b, err := os.ReadFile(filepath.Join("../..", e.file))
				if err != nil {
					t.Fatal(err)
				}
				if n := strings.Count(string(b), e.from); n != 1 {
					t.Fatalf("%s has the text %d times", e.file, n)
				}
				changed := filepath.Join(dir, fmt.Sprint("changed", i, ".go"))
				if err := os.WriteFile(changed, []byte(strings.Replace(string(b), e.from, e.to, 1)), 0o644); err != nil {
					t.Fatal(err)
				}
				original, err := filepath.Abs(filepath.Join("../..", e.file))
				if err != nil {
					t.Fatal(err)
				}
				replace[original] = changed
			}
			overlay := filepath.Join(dir, "overlay.json")
			text, _ := json.Marshal(map[string]any{"Replace": replace})
			if err := os.WriteFile(overlay, text, 0o644); err != nil {
				t.Fatal(err)
			}
			bin := filepath.Join(dir, "xlft")
			build(t, bin, overlay)
			r := run(t, processes.Options{Binary: bin, Arbiter: v.arbiter, Broken: true, Seed: *procSeed, For: 3 * time.Minute, Faults: regexp.MustCompile(v.faults)})
			if len(r.Violations) == 0 || !strings.Contains(r.Violations[0], v.want) {
				t.Errorf("not caught: %v", r.Violations)
			}
			for i, v := range r.Violations {
				r.Violations[i], _, _ = strings.Cut(v, "\n")
			}
			t.Logf("violations: %q\n%s", r.Violations, summary(r))
		})
	}
}

// Mutants breaks xlft on purpose, in one place at a time, and says which breaks no
// test notices: what a test can't fail by, it does not check.
//
// The breaks are in mutants.txt: semantic ones, each of which would break a promise
// or a rule of docs/design.md. For each, the unit tests run, and if they notice
// nothing a short simulation. The tree is not touched: the compiler is given the
// changed file by an overlay.
//
//	go run ./tests/mutants [-run REGEXP] [-sample N -seed S] [-seeds N]
//
// The exit status is 0 if every mutant was noticed, or is listed with the reason
// why none can notice it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// A mutant is one break: in a file, a text that is there once becomes another.
type mutant struct {
	name     string
	file     string
	from, to string
	survives string   // why no test can notice; "" if one has to
	by       []string // a package, a test and its flags, that have to notice; nil for all tests
}

// units are the packages whose tests run after those of the mutant's own package
// and of package xlft, which notice most; the simulation runs last.
var units = []string{"./xlft/primary", "./xlft/backup", "./xlft/wire", "./xlft/internal/arbiter", "./xlft/internal/store", "./netbuffer", "./xlft/internal/overview"}

func main() {
	pattern := flag.String("run", "", "only mutants whose name matches")
	sample := flag.Int("sample", 0, "only so many, chosen by the seed; 0: all")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the sample")
	seeds := flag.Int("seeds", 600, "fault schedules for each mutant; 0: only compile it")
	flag.Parse()
	if err := run(*pattern, *sample, *seed, *seeds); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(pattern string, sample int, seed uint64, seeds int) error {
	b, err := os.ReadFile("tests/mutants/mutants.txt")
	if err != nil {
		return fmt.Errorf("run it in the repository's root: %w", err)
	}
	all, err := parse(string(b))
	if err != nil {
		return err
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	var chosen []mutant
	for _, m := range all {
		if re.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	if sample > 0 && sample < len(chosen) {
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		chosen = chosen[:sample]
		fmt.Printf("%d of %d mutants, seed %d\n", sample, len(all), seed)
	}
	for _, m := range chosen {
		if _, err := mutate(m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	noticed, unnoticed, bad := 0, 0, 0
	for _, m := range chosen {
		begun := time.Now()
		by, err := try(m, seeds)
		switch {
		case err != nil:
			fmt.Printf("%-9s %5.1fs  %s: %v\n", "BROKEN", time.Since(begun).Seconds(), m.name, err)
			bad++
		case seeds == 0:
			continue
		case by != "" && m.survives != "":
			fmt.Printf("%-9s %5.1fs  %s\n          noticed by %s, though listed as one that can't be: %s\n", "NOTICED", time.Since(begun).Seconds(), m.name, by, m.survives)
			noticed++
		case by != "":
			fmt.Printf("%-9s %5.1fs  %s: %s\n", "noticed", time.Since(begun).Seconds(), m.name, by)
			noticed++
		case m.survives != "":
			fmt.Printf("%-9s %5.1fs  %s: %s\n", "harmless", time.Since(begun).Seconds(), m.name, m.survives)
		default:
			fmt.Printf("%-9s %5.1fs  %s\n", "SURVIVED", time.Since(begun).Seconds(), m.name)
			unnoticed++
		}
	}
	fmt.Printf("%d mutants: %d noticed, %d survived, %d can't be noticed, %d do not compile\n", len(chosen), noticed, unnoticed, len(chosen)-noticed-unnoticed-bad, bad)
	if unnoticed > 0 || bad > 0 {
		return fmt.Errorf("%d breaks that no test notices, %d that do not compile", unnoticed, bad)
	}
	return nil
}

// parse reads mutants.txt:
//
//	= name
//	file path
//	- text that is there once, line by line
//	+ what it becomes, line by line; none if it goes
//	survives why, if no test can notice
//	by package test flags…, if this test has to notice by itself
func parse(text string) (all []mutant, err error) {
	var m *mutant
	for i, line := range strings.Split(text, "\n") {
		kind, rest, _ := strings.Cut(line, " ")
		if kind == "=" {
			all = append(all, mutant{name: rest})
			m = &all[len(all)-1]
			continue
		}
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case m == nil:
			return nil, fmt.Errorf("mutants.txt:%d: %q before the first mutant", i+1, line)
		case kind == "file":
			m.file = rest
		case kind == "-":
			m.from += rest + "\n"
		case kind == "+":
			m.to += rest + "\n"
		case kind == "survives":
			m.survives = rest
		case kind == "by":
			m.by = strings.Fields(rest)
		default:
			return nil, fmt.Errorf("mutants.txt:%d: what is %q?", i+1, line)
		}
	}
	names := map[string]bool{}
	for _, m := range all {
		if m.file == "" || m.from == "" || names[m.name] {
			return nil, fmt.Errorf("mutant %q has no file or no text, or is there twice", m.name)
		}
		names[m.name] = true
	}
	return all, nil
}

// mutate returns the mutant's file with the break in it. Lines are compared without
// their indentation.
func mutate(m mutant) ([]byte, error) {
	b, err := os.ReadFile(m.file)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(b), "\n")
	want := strings.Split(strings.TrimSuffix(m.from, "\n"), "\n")
	at := -1
	for i := 0; i+len(want) <= len(lines); i++ {
		same := true
		for j := range want {
			same = same && strings.TrimSpace(lines[i+j]) == strings.TrimSpace(want[j])
		}
		if same && at >= 0 {
			return nil, fmt.Errorf("%s has %q twice: name more lines", m.file, m.from)
		}
		if same {
			at = i
		}
	}
	if at < 0 {
		return nil, fmt.Errorf("%s does not have %q any more", m.file, m.from)
	}
	out := append([]string{}, lines[:at]...)
	if m.to != "" {
		out = append(out, strings.TrimSuffix(m.to, "\n"))
	}
	return []byte(strings.Join(append(out, lines[at+len(want):]...), "\n")), nil
}

// try returns what noticed a mutant; "" if nothing did.
func try(m mutant, seeds int) (by string, err error) {
	b, err := mutate(m)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "xlft-mutant-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	file, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	changed, overlay := filepath.Join(dir, filepath.Base(m.file)), filepath.Join(dir, "overlay.json")
	o, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(changed, b, 0o644), os.WriteFile(overlay, o, 0o644)); err != nil {
		return "", err
	}
	if seeds == 0 {
		if out, err := exec.Command("go", "build", "-overlay", overlay, "./"+filepath.Dir(m.file)).CombinedOutput(); err != nil {
			return "", fmt.Errorf("does not compile:\n%s", out)
		}
		return "", nil
	}
	test := []string{"test", "-vet=off", "-overlay", overlay, "-count=1", "-failfast"}
	own := "./" + filepath.Dir(m.file)
	runs := [][]string{
		append(append([]string{}, test...), "-timeout=180s", "-skip=TestSimulation", own), // soonest
		append(append([]string{}, test...), "-timeout=180s", "-skip=TestSimulation", "./xlft"),
		append(append(append([]string{}, test...), "-timeout=60s"), units...),
		append(append([]string{}, test...), "-timeout=300s", "-run=TestSimulation$", "./xlft", fmt.Sprintf("-sim.seeds=%d", seeds)),
	}
	if len(m.by) > 1 {
		runs = [][]string{append(append(append([]string{}, test...), "-timeout=180s", "-run="+m.by[1], m.by[0]), m.by[2:]...)}
	}
	for _, args := range runs {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		cmd := exec.CommandContext(ctx, "go", args...)
		out, err := cmd.CombinedOutput()
		cancel()
		if err == nil {
			continue
		}
		if strings.Contains(string(out), "[build failed]") || strings.Contains(string(out), "[setup failed]") {
			return "", fmt.Errorf("does not compile:\n%s", out)
		}
		return first(string(out)), nil
	}
	return "", nil
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)|^panic: (.*)$|^fatal error: (.*)$`)

// first names the test that failed.
func first(out string) string {
	found := failed.FindAllStringSubmatch(out, -1)
	if len(found) == 0 {
		return strings.TrimSpace(out[max(0, len(out)-200):])
	}
	last := found[0]
	for _, f := range found { // the innermost test of the first that failed
		if f[1] == "" || !strings.HasPrefix(f[1], last[1]) {
			break
		}
		last = f
	}
	return last[1] + last[2] + last[3]
}

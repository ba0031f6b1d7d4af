package xlft_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "xlft/"

// goList runs go list with a format of one line a package.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// floor is how high a package of ours stands: it may import only packages that
// stand lower, and packages of its own folder. Test support stands above all.
func floor(pkg string) int {
	pkg = strings.TrimPrefix(pkg, module)
	for i, prefixes := range [][]string{
		{"evtchn", "savestream", "netbuffer", "diskrepl", "xlft/wire"}, // the leaves
		{"xlft"},
		{"xlft/config"},
		{"xlft/primary", "xlft/backup"},
		{"xlft/internal/"},
		{"xlft/cmd/"},
		{"tests/"},
	} {
		for _, p := range prefixes {
			if pkg == p || strings.HasPrefix(pkg, strings.TrimSuffix(p, "/")+"/") && p != "xlft" {
				return i
			}
		}
	}
	return -1
}

// folder is the part of the tree that a package belongs to.
func folder(pkg string) string {
	parts := strings.Split(strings.TrimPrefix(pkg, module), "/")
	if parts[0] == "xlft" {
		parts = parts[:min(len(parts), 2)]
		return strings.Join(parts, "/")
	}
	return parts[0]
}

// Imports run one way, from the commands down to the leaves.
func TestImportsRunOneWay(t *testing.T) {
	for _, tags := range []string{"", "xen"} {
		for _, line := range goList(t, "-e", "-tags", tags, "-f", `{{.ImportPath}}:{{join .Imports " "}}`, "./...") { // -e: xenlight may not be there
			pkg, imports, _ := strings.Cut(line, ":")
			at := floor(pkg)
			if at < 0 {
				t.Errorf("%s has no place: give it one in floor", pkg)
			}
			for _, dep := range strings.Fields(imports) {
				if !strings.HasPrefix(dep, module) {
					continue
				}
				if folder(pkg) == folder(dep) {
					continue // in one folder the compiler keeps the order
				}
				if floor(dep) >= at {
					t.Errorf("%s imports %s, which does not stand below it", pkg, dep)
				}
			}
		}
	}
	// Neither program knows the other.
	for _, p := range []string{"primary", "backup"} {
		other := map[string]string{"primary": "backup", "backup": "primary"}[p]
		if slices.Contains(goList(t, "-deps", module+"xlft/"+p), module+"xlft/"+other) {
			t.Errorf("%s imports %s", p, other)
		}
	}
}

// The leaves can be used alone: they import nothing of ours but their own parts,
// no cgo of their own and no logger, and they build on other systems.
func TestLeaves(t *testing.T) {
	// The standard library's net has cgo for names; these three use net.
	netCgo := map[string]bool{"netbuffer": true, "diskrepl/nbd": true, "xlft/wire": true}
	for _, leaf := range []string{"evtchn", "savestream", "netbuffer", "diskrepl", "diskrepl/nbd", "diskrepl/blockfile", "xlft/wire"} {
		for _, dep := range goList(t, "-deps", module+leaf) {
			top, _, _ := strings.Cut(leaf, "/")
			if top == "xlft" {
				top = leaf
			}
			if strings.HasPrefix(dep, module) && !strings.HasPrefix(dep+"/", module+top+"/") || dep == "go.uber.org/zap" || dep == "runtime/cgo" && !netCgo[leaf] {
				t.Errorf("%s imports %s", leaf, dep)
			}
		}
		cmd := exec.Command("go", "vet", module+leaf)
		cmd.Env = append(os.Environ(), "GOOS=darwin", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s on another system: %v\n%s", leaf, err, out)
		}
	}
}

// There is one door to Xen: one package has cgo, in the build with Xen. Linux'
// own interfaces are behind few doors too.
func TestDoors(t *testing.T) {
	cgo := goList(t, "-e", "-tags", "xen", "-f", "{{if .CgoFiles}}{{.ImportPath}}{{end}}", "./...")
	for _, p := range cgo {
		if p != "" && p != module+"xlft/internal/xen" {
			t.Errorf("%s has cgo", p)
		}
	}
	unix := []string{"evtchn", "netbuffer", "diskrepl", "diskrepl/blockfile", "diskrepl/nbd", "xlft/internal/"}
	for _, line := range goList(t, "-f", `{{.ImportPath}}:{{join .Imports " "}}`, "./...") {
		pkg, imports, _ := strings.Cut(strings.TrimPrefix(line, module), ":")
		if !strings.Contains(imports+" ", "golang.org/x/sys/unix ") || strings.HasPrefix(pkg, "tests/") {
			continue
		}
		if !slices.ContainsFunc(unix, func(p string) bool {
			return pkg == p || strings.HasSuffix(p, "/") && strings.HasPrefix(pkg, p)
		}) {
			t.Errorf("%s imports golang.org/x/sys/unix", pkg)
		}
	}
}

// A file that has grown beyond 600 lines has more than one purpose.
func TestFileLengths(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "build" || d.Name() == ".git"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".go":
			return nil
		}
		b, err := os.ReadFile(path)
		if n := strings.Count(string(b), "\n"); n > 600 {
			t.Errorf("%s has %d lines", path, n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// docs/simulation.md says which packages the simulation runs and which it
// replaces. The list is true: every package is in it once, and what it is said
// to run is what the simulation's test imports, directly or not.
func TestSimulationList(t *testing.T) {
	text, err := os.ReadFile("../docs/simulation.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| *`(" + module + "[a-z/]+)` *\\|")
	said := map[string]string{} // package: section
	for _, section := range strings.Split("\n"+string(text), "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		if title != "Runs" && title != "Replaces" {
			continue
		}
		for _, m := range row.FindAllStringSubmatch(body, -1) {
			if was, ok := said[m[1]]; ok {
				t.Errorf("%s is named twice, under %s and %s", m[1], was, title)
			}
			said[m[1]] = title
		}
	}
	runs := map[string]bool{}
	for _, dep := range goList(t, "-deps", "-test", module+"xlft") {
		dep, _, _ = strings.Cut(dep, " ")
		runs[dep] = true
	}
	for _, p := range goList(t, "./...") {
		if strings.HasPrefix(p, module+"tests/") || strings.HasSuffix(p, "test") { // test support
			continue
		}
		switch {
		case said[p] == "":
			t.Errorf("docs/simulation.md does not say whether the simulation runs %s", p)
		case said[p] == "Runs" && !runs[p]:
			t.Errorf("docs/simulation.md says that the simulation runs %s, and it does not import it", p)
		case said[p] == "Replaces" && runs[p]:
			t.Errorf("docs/simulation.md says that the simulation replaces %s, and it imports it", p)
		}
		delete(said, p)
	}
	for p := range said {
		t.Errorf("docs/simulation.md names %s, which is no package of ours", p)
	}
}

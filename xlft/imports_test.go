package xlft_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The leaf packages import no other package of this module, no cgo and no
// logger.
func TestImports(t *testing.T) {
	const module = "xlft/"
	for _, leaf := range []string{"evtchn", "savestream", "netbuffer", "diskrepl", "xlft/wire"} {
		out, err := exec.Command("go", "list", "-deps", module+leaf).CombinedOutput()
		if err != nil {
			s := string(out)
			if strings.Contains(s, "no Go files") || strings.Contains(s, "no required module") || strings.Contains(s, "is not in std") {
				continue // evtchn does not exist yet
			}
			t.Fatalf("go list %s: %v\n%s", leaf, err, out)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(dep, module) && !strings.HasPrefix(dep, module+leaf) || dep == "go.uber.org/zap" ||
				dep == "runtime/cgo" && leaf != "xlft/wire" && leaf != "netbuffer" {
				t.Errorf("%s imports %s", leaf, dep)
			}
		}
	}
	// One package may use cgo: the door to Xen.
	out, err := exec.Command("go", "list", "-tags", "xen", "-f", "{{if .CgoFiles}}{{.ImportPath}}{{end}}", "./...").Output()
	if err != nil {
		t.Skip("go list with -tags xen:", err)
	}
	if got := strings.Fields(string(out)); !slices.Equal(got, []string{}) && !slices.Equal(got, []string{"xlft/xlft/internal/xen"}) {
		t.Errorf("packages with cgo: %v", got)
	}
}

package xlft_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tests that the documents name are there.
func TestDocsNameTests(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	have := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			have[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)`")
	for _, doc := range []string{"failures.md", "model.md", "performance.md", "processes.md", "simulation.md", "disks.md", "operation.md", "design.md"} {
		b, err := os.ReadFile(filepath.Join("../docs", doc))
		if err != nil {
			t.Error(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(b), -1) {
			if !have[m[1]] {
				t.Errorf("docs/%s names %s, which is not there", doc, m[1])
			}
		}
	}
}

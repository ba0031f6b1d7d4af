package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A text file is replaced whole; where that fails the old one stays.
func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	conf, out := filepath.Join(dir, "xlft.toml"), filepath.Join(dir, "out")
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+dir+"\"\nstate_dir = \""+dir+"\"\n[arbiter]\ntype = \"manual\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(out, "xlft.prom")
	if _, complaint := run(t, "--config", conf, "metrics", "--textfile", file); complaint != "" {
		t.Fatal(complaint)
	}
	b, err := os.ReadFile(file)
	st, _ := os.Stat(file)
	if err != nil || !strings.Contains(string(b), "\nxlft_host_drained 0\n") || st.Mode().Perm() != 0o644 {
		t.Errorf("%s, %v: %v", b, st.Mode(), err)
	}
	printed, _ := run(t, "--config", conf, "metrics")
	if printed != string(b) {
		t.Errorf("printed\n%s\nwritten\n%s", printed, b)
	}
	if _, complaint := run(t, "--config", conf, "metrics", "--textfile", filepath.Join(dir, "no", "xlft.prom")); !strings.Contains(complaint, "no such file or directory") {
		t.Errorf("it complains %q", complaint)
	}
	if all, _ := os.ReadDir(out); len(all) != 1 {
		t.Errorf("left: %v", all)
	}
}

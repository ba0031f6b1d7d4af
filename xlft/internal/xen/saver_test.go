package xen

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSaver(t *testing.T) {
	proc := t.TempDir()
	for pid, line := range map[string]string{
		"1":    "/sbin/init",
		"20":   "",
		"300":  "/usr/lib/xen-4.17/bin/libxl-save-helper --restore-domain 7 8 4 0 0",
		"301":  "/usr/lib/xen-4.17/bin/libxl-save-helper --save-domain 4 -1 6 0 7 0",
		"302":  "libxl-save-helper --save-domain 6 -1 12 1 7 0",
		"303":  "less libxl-save-helper --save-domain 4 8",
		"304":  "libxl-save-helper",
		"self": "libxl-save-helper --save-domain 6 -1 40 1 7 0",
	} {
		dir := filepath.Join(proc, pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(strings.ReplaceAll(line, " ", "\x00")+"\x00"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for domid, want := range map[uint32]int{4: 0, 6: 301, 12: 302, 1: 0, 8: 0, 40: 0} {
		if got := Saver(proc, domid); got != want {
			t.Errorf("domain %d: process %d, want %d", domid, got, want)
		}
	}
	if got := Saver(filepath.Join(proc, "none"), 6); got != 0 {
		t.Errorf("without /proc: process %d", got)
	}
}

//go:build man

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Every command has a man page.
func TestMan(t *testing.T) {
	dir := t.TempDir()
	if _, complaint := run(t, "man", dir); complaint != "" {
		t.Fatal(complaint)
	}
	for _, c := range documented {
		if _, err := os.Stat(filepath.Join(dir, "xlft-"+c+".8")); err != nil {
			t.Error(err)
		}
	}
}

package xlft

import (
	"path/filepath"
	"testing"
)

func FuzzFileName(f *testing.F) {
	for _, s := range []string{"web1", "..", ".", ".x", "a/b", "web-1", "web 1", "-x", "a\x00b", "ü", "%2E", "a,b", "a.sock"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		file := FileName(name)
		if back, ok := NameOf(file); !ok || back != name {
			t.Errorf("%q is %q, and back %q, %v", name, file, back, ok)
		}
		if name != "" && (filepath.Base(file) != file || file == "." || file == "..") {
			t.Errorf("%q: %q is no file in a directory", name, file)
		}
	})
}

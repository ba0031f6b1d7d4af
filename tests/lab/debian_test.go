//go:build linux

package lab

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestDebianSources(t *testing.T) {
	main := source{defaultMirror, "bookworm"}
	updates := source{defaultMirror, "bookworm-updates"}
	security := source{securityPath, "bookworm-security"}
	for _, c := range []struct {
		name, file, body string
		want             []source
	}{
		{"nothing", "", "", []source{main, updates, security}},
		{"deb822", "sources.list.d/debian.sources", `Types: deb
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib

Types: deb deb-src
URIs: http://mirror.example/security
Suites:
 bookworm-security
Components: main
`, []source{
			{"http://mirror.example/debian", "bookworm"},
			{"http://mirror.example/debian", "bookworm-updates"},
			{"http://mirror.example/security", "bookworm-security"},
		}},
		{"one line", "sources.list", `# deb http://old.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main non-free # ours
`, []source{{"http://mirror.example/debian", "bookworm"}, updates, security}},
		{"disabled", "sources.list.d/debian.sources", "Enabled: no\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n",
			[]source{main, updates, security}},
		{"another release", "sources.list", "deb http://mirror.example/debian trixie main\n", []source{main, updates, security}},
		{"another product", "sources.list.d/x.list", "deb http://x.example/apt bookworm stable\n", []source{main, updates, security}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.file != "" {
				name := filepath.Join(dir, c.file)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(c.body), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := debianSources(dir); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

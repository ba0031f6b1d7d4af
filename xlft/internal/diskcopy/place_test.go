package diskcopy

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlft/xlft/config"
	"xlft/xlft/internal/store"
)

const size = 4 << 20

// A place is a host's directory: disks and a state.
type place struct {
	t     *testing.T
	dir   string
	store store.Dir
	conf  *config.Config
}

func newPlace(t *testing.T, fill byte) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{t: t, dir: dir, store: store.Dir(filepath.Join(dir, "state"))}
	path := filepath.Join(dir, "xvda")
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	p.conf = &config.Config{RunDir: dir, StateDir: filepath.Join(dir, "state"), DiskJournal: 64 << 20, Domains: map[string]config.Domain{
		"web1": {Name: "web1", Disks: map[string]config.Disk{"xvda": {VDev: "xvda", Path: path}}},
	}}
	return p
}

// image returns what the disk has.
func (p *place) image() []byte {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, "xvda"))
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// refused checks the text of an error. With no words there must be no error.
func refused(t *testing.T, what string, err error, words string) {
	t.Helper()
	if words == "" && err != nil || words != "" && (err == nil || !strings.Contains(err.Error(), words)) {
		t.Errorf("%s: %v, want %q", what, err, words)
	}
}

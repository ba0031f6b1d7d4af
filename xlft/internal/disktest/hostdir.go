// Package disktest has what the tests of the disk server and of the backup's copies share: a host's directory.
package disktest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlft/xlft/config"
	"xlft/xlft/internal/store"
)

// Size is the size of every disk.
const Size = 4 << 20

// A HostDir is a host's directory: disks, records and sockets of the domain web1, with the configuration that names
// them.
type HostDir struct {
	T     *testing.T
	Dir   string
	Store store.Dir
	Conf  *config.Config
}

// New returns a directory with one disk, xvda, that is filled with a byte.
func New(t *testing.T, fill byte) *HostDir {
	t.Helper()
	dir, err := os.MkdirTemp("", "disk") // not t.TempDir: the name of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &HostDir{T: t, Dir: dir, Store: store.Dir(filepath.Join(dir, "state"))}
	h.Conf = &config.Config{
		RunDir: dir, StateDir: filepath.Join(dir, "state"), DiskJournal: 64 << 20,
		Domains: map[string]config.Domain{"web1": {Name: "web1", Disks: map[string]config.Disk{}}},
	}
	h.AddDisk("xvda", fill, false)
	return h
}

// AddDisk adds a disk that is filled with a byte.
func (h *HostDir) AddDisk(vdev string, fill byte, shared bool) {
	h.T.Helper()
	path := filepath.Join(h.Dir, vdev)
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, Size), 0o600); err != nil {
		h.T.Fatal(err)
	}
	h.Conf.Domains["web1"].Disks[vdev] = config.Disk{VDev: vdev, Path: path, Shared: shared}
}

// Image returns the content of a disk.
func (h *HostDir) Image(vdev string) []byte {
	h.T.Helper()
	b, err := os.ReadFile(filepath.Join(h.Dir, vdev))
	if err != nil {
		h.T.Fatal(err)
	}
	return b
}

// Refused checks that an error has some text. Without text there must be no error.
func Refused(t *testing.T, what string, err error, text string) {
	t.Helper()
	if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
		t.Errorf("%s: %v, want %q", what, err, text)
	}
}

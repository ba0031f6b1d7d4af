//go:build linux

package lab

import (
	"os"
	"path/filepath"
)

// SAN is the disk that both hosts see, as each of them calls it. It outlives
// them; Reset empties it.
const SAN = "/dev/vdb"

// sanSize is its length in bytes.
const sanSize = 64 << 20

// sanOf returns the file behind it, for a host whose directory is dir.
func sanOf(dir string) string { return filepath.Join(filepath.Dir(dir), "san") }

// emptySAN makes the file anew.
func emptySAN(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(sanSize)
}

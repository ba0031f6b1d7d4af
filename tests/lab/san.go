//go:build linux

package lab

import (
	"os"
	"path/filepath"
)

// SAN is the name on either host of the disk that both hosts see. The disk outlives the hosts; Reset empties it.
const SAN = "/dev/vdb"

// sanSize is the disk's length in bytes.
const sanSize = 64 << 20

// sanOf returns the file behind the disk, for a host whose directory is dir.
func sanOf(dir string) string { return filepath.Join(filepath.Dir(dir), "san") }

// emptySAN creates the file, or replaces it by an empty one.
func emptySAN(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(sanSize)
}

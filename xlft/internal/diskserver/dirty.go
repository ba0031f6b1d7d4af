package diskserver

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A dirtyFile is memory that outlives this process but not the host: after a
// power cut the record on a disk would be incomplete.
type dirtyFile struct {
	name string
	mem  []byte
}

// openDirty opens the file of a disk, with the contents that an earlier process
// left if again is set.
func openDirty(dir, vdev string, size int64, again bool) (*dirtyFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, vdev)
	flags := os.O_RDWR | os.O_CREATE
	if !again {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Allocate all of it now: a page that is not available later kills the
	// process.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		os.Remove(name)
		return nil, fmt.Errorf("%d bytes in %s: %w", size, name, err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	return &dirtyFile{name, mem}, nil
}

func (f *dirtyFile) remove() { os.Remove(f.name) }

func (f *dirtyFile) close() { unix.Munmap(f.mem) }

package restore

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// libxl writes a domain's configuration to xen.LibDir when the restore is complete,
// and gives the domain up if there is no room. Other programs that find the disk
// full take what is let go too, so it is far more than libxl needs.
const libxlRoom = 4 << 20

// keepRoom keeps room in a directory's file system until the file is closed, or
// this process has ended; none in "".
func keepRoom(dir string, bytes int64) (*os.File, error) {
	if dir == "" {
		return nil, nil
	}
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, bytes); err == nil {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("no room in %s, where libxl writes at a takeover: keep %d KiB: %w", dir, bytes>>10, err)
}

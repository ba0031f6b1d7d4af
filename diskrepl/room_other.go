//go:build !linux

package diskrepl

import "errors"

// freeBytes fails: it is written for Linux only.
func freeBytes(string) (int64, error) {
	return 0, errors.New("diskrepl: the free space of a file system is known on Linux only")
}

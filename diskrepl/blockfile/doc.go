// Package blockfile is a local disk: a file, a block device or a logical volume
// that is read and written through the page cache or, with O_DIRECT, past it.
//
// The one rule a caller must know: a [File] is locked against a second user
// unless it was opened by [OpenShared], and a write is on stable storage only
// after a later [File.Flush], or if it asked for FUA.
//
// Only Linux is supported. Elsewhere the package builds, and opening a disk
// returns [ErrNeedsLinux].
package blockfile

import "errors"

// ErrNeedsLinux is returned by Open and OpenShared on other systems.
var ErrNeedsLinux = errors.New("blockfile: disks need Linux")

package diskrepl

// A Device is a disk. It is the same as that of package nbd.
type Device interface {
	Size() int64
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64, fua bool) error
	Zero(off, n int64, keep, fua bool) error
	Trim(off, n int64, fua bool) error
	Flush() error
}

// quick is what a Device can tell without waiting for a disk; see package nbd.
type quick interface {
	TryReadAt(p []byte, off int64) bool
	QuickWrites() bool
}

package diskrepl

// A Device is a disk. Package nbd declares the same interface and documents its
// methods.
type Device interface {
	Size() int64
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64, fua bool) error
	Zero(off, n int64, keep, fua bool) error
	Trim(off, n int64, fua bool) error
	Flush() error
}

// A quickDevice is a Device that knows which requests it can serve without
// waiting for a disk. See nbd.QuickDevice.
type quickDevice interface {
	TryReadAt(p []byte, off int64) bool
	QuickWrites() bool
}

// fuaFlag returns the record's flag for a write with or without FUA.
func fuaFlag(fua bool) uint8 {
	if fua {
		return flagFUA
	}
	return 0
}

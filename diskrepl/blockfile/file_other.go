//go:build !linux

package blockfile

// A File is a disk of this host. It exists on Linux only.
type File struct{}

// Open returns [ErrNeedsLinux].
func Open(name string, direct bool) (*File, error) { return nil, ErrNeedsLinux }

// OpenShared returns [ErrNeedsLinux].
func OpenShared(name string) (*File, error) { return nil, ErrNeedsLinux }

// The methods are those of a File on Linux. None is ever called, because no
// File can be opened.

func (*File) Close() error                      { return ErrNeedsLinux }
func (*File) Name() string                      { return "" }
func (*File) Size() int64                       { return 0 }
func (*File) Sector() int64                     { return 0 }
func (*File) ReadAt([]byte, int64) error        { return ErrNeedsLinux }
func (*File) ReadStable([]byte, int64) error    { return ErrNeedsLinux }
func (*File) Forget(_, _ int64) error           { return ErrNeedsLinux }
func (*File) TryReadAt([]byte, int64) bool      { return false }
func (*File) QuickWrites() bool                 { return false }
func (*File) WriteAt([]byte, int64, bool) error { return ErrNeedsLinux }
func (*File) Zero(_, _ int64, _, _ bool) error  { return ErrNeedsLinux }
func (*File) Trim(_, _ int64, _ bool) error     { return ErrNeedsLinux }
func (*File) Flush() error                      { return ErrNeedsLinux }

package nbd

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// addressOf is where a slice begins.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// A File is a Device on a file, a block device or a logical volume.
type File struct {
	f      *os.File
	size   int64
	direct bool
	block  bool // a block device
	aio    *aio // nil: a thread for each request

	// part is held by a write of a part of a block, which must read the rest
	// first, against all others.
	part sync.RWMutex
}

// OpenFile opens a disk for one user: a second one that asks in the same way is
// told that it is in use. With direct, the kernel's page cache is passed by.
func OpenFile(name string, direct bool) (*File, error) { return openFile(name, direct, true) }

// OpenShared opens storage that another host has open too: the page cache is
// passed by, and a file is not locked, because some file systems would lock it
// against the other host.
func OpenShared(name string) (*File, error) { return openFile(name, true, false) }

func openFile(name string, direct, lock bool) (*File, error) {
	flags := os.O_RDWR
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	block := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if block {
		flags |= unix.O_EXCL // nobody has it mounted, or in a volume group
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: neither a file nor a block device", name)
	}
	if direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(name, flags, 0)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return nil, fmt.Errorf("%w: is it mounted, or used by another domain?", err)
	case errors.Is(err, syscall.EINVAL) && direct:
		return nil, fmt.Errorf("%w: its file system has no direct I/O", err)
	case err != nil:
		return nil, err
	}
	if lock {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if err == unix.EWOULDBLOCK {
				err = errors.New("in use by another process")
			}
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
	d := &File{f: f, direct: direct, block: block}
	if d.size, err = f.Seek(0, 2); err != nil {
		f.Close()
		return nil, err
	}
	if direct {
		d.aio = newAIO(f)
	}
	return d, nil
}

// Close closes it. What was not flushed is the kernel's to write.
func (d *File) Close() error {
	if d.aio != nil {
		d.aio.close()
	}
	return d.f.Close()
}

// Name is the name it was opened by.
func (d *File) Name() string { return d.f.Name() }

// Size returns its length in bytes.
func (d *File) Size() int64 { return d.size }

// fits reports whether O_DIRECT takes a request as it is.
func fits(p []byte, off int64) bool {
	return (int64(addressOf(p))|off|int64(len(p)))&(Align-1) == 0
}

// ReadAt fills p.
func (d *File) ReadAt(p []byte, off int64) error {
	if d.direct && !fits(p, off) {
		return d.around(p, off, func(b []byte, from int64) error {
			copy(p, b[off-from:])
			return nil
		})
	}
	_, err := d.read(p, off)
	return d.named("read", off, err)
}

// read is ReadAt with all that O_DIRECT wants.
func (d *File) read(p []byte, off int64) (int, error) {
	if d.aio == nil {
		return d.f.ReadAt(p, off)
	}
	return d.aio.do(aioRead, p, off, 0, func() (int, error) { return d.f.ReadAt(p, off) })
}

// named says of what file an error is, unless os has said so.
func (d *File) named(what string, off int64, err error) error {
	var pe *os.PathError
	if err == nil || errors.As(err, &pe) {
		return err
	}
	return fmt.Errorf("%s %s at %d: %w", what, d.f.Name(), off, err)
}

// around reads the aligned range around p's, and gives it to use.
func (d *File) around(p []byte, off int64, use func(b []byte, from int64) error) error {
	from := off &^ (Align - 1)
	to := (off + int64(len(p)) + Align - 1) &^ (Align - 1)
	b := AlignedBuffer(int(to - from))
	defer FreeBuffer(b)
	n, err := d.read(b, from)
	if int64(n) < off-from+int64(len(p)) {
		return d.named("read", from, err)
	}
	return use(b[:n], from)
}

// TryReadAt reads what the page cache has.
func (d *File) TryReadAt(p []byte, off int64) bool {
	if d.direct {
		return false
	}
	n, err := unix.Preadv2(int(d.f.Fd()), [][]byte{p}, off, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}

// QuickWrites: the page cache takes them.
func (d *File) QuickWrites() bool { return !d.direct }

// WriteAt writes p.
func (d *File) WriteAt(p []byte, off int64, fua bool) error {
	if !d.direct {
		return d.write(p, off, fua)
	}
	if (off|int64(len(p)))&(Align-1) != 0 {
		d.part.Lock()
		defer d.part.Unlock()
		return d.around(p, off, func(b []byte, from int64) error {
			copy(b[off-from:], p)
			return d.write(b, from, fua)
		})
	}
	d.part.RLock()
	defer d.part.RUnlock()
	if !fits(p, off) {
		b := AlignedBuffer(len(p))
		defer FreeBuffer(b)
		copy(b, p)
		p = b
	}
	return d.write(p, off, fua)
}

func (d *File) write(p []byte, off int64, fua bool) error {
	if d.aio == nil {
		_, err := d.writeAlone(p, off, fua)
		return err
	}
	var flags uint32
	if fua {
		flags = unix.RWF_DSYNC
	}
	_, err := d.aio.do(aioWrite, p, off, flags, func() (int, error) { return d.writeAlone(p, off, fua) })
	return d.named("write", off, err)
}

// writeAlone writes with a system call that waits.
func (d *File) writeAlone(p []byte, off int64, fua bool) (done int, err error) {
	if !fua {
		return d.f.WriteAt(p, off)
	}
	for done < len(p) {
		n, err := unix.Pwritev2(int(d.f.Fd()), [][]byte{p[done:]}, off+int64(done), unix.RWF_DSYNC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, &os.PathError{Op: "write", Path: d.f.Name(), Err: err}
		}
		done += n
	}
	return done, nil
}

// Zero makes a range read as zeroes.
func (d *File) Zero(off, n int64, keep, fua bool) error {
	if n == 0 {
		return nil
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if keep || d.block {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := d.fallocate(mode, off, n)
	if unsupported(err) {
		err = d.writeZeroes(off, n)
	}
	if err == nil && fua {
		err = d.Flush()
	}
	return err
}

func (d *File) writeZeroes(off, n int64) error {
	b := AlignedBuffer(int(min(n, 1<<20)))
	defer FreeBuffer(b)
	clear(b)
	for n > 0 {
		m := min(n, int64(len(b)))
		if err := d.WriteAt(b[:m], off, false); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// Trim frees a range where that can be done, and leaves it alone where not.
func (d *File) Trim(off, n int64, fua bool) error {
	if n == 0 {
		return nil
	}
	err := d.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if unsupported(err) {
		err = nil
	}
	if err == nil && fua {
		err = d.Flush()
	}
	return err
}

// unsupported: the disk, or its file system, has no such fallocate.
func unsupported(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV)
}

func (d *File) fallocate(mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(int(d.f.Fd()), mode, off, n)
		if err != unix.EINTR {
			if err != nil {
				return fmt.Errorf("fallocate %s at %d: %w", d.f.Name(), off, err)
			}
			return nil
		}
	}
}

// Flush returns when the disk has all that was written before.
func (d *File) Flush() error {
	for {
		err := unix.Fdatasync(int(d.f.Fd()))
		if err != unix.EINTR {
			if err != nil {
				return fmt.Errorf("flush %s: %w", d.f.Name(), err)
			}
			return nil
		}
	}
}

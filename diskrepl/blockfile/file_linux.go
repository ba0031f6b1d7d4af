package blockfile

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"xlft/diskrepl/internal/rangelock"
)

// A File is a disk of this host: a file, a block device or a logical volume. It
// is a Device of packages nbd and diskrepl. Its methods may be called by any
// number of goroutines; offsets and lengths are in bytes and need no alignment.
type File struct {
	f      *os.File
	size   int64
	direct bool
	block  bool  // a block device
	sector int64 // bytes of a sector: of a block device its own, of a file 512
	unit   int64 // alignment that O_DIRECT needs, in bytes: of offsets, lengths and addresses
	aio    *aio  // nil: each request blocks a thread

	// part excludes all other changes of a block while a part of it is written: the
	// rest of the block is read before. Of a disk that is not direct it is not used.
	part rangelock.Lock

	stable func() (*os.File, error) // opens the disk once more, past the page cache
	past   atomic.Pointer[os.File]  // what stable opened
}

// leastSector is the smallest sector of any disk in bytes.
const leastSector = 512

// Open opens a disk for exclusive use: a second Open of the same disk fails. A
// block device that is mounted or part of a volume group can't be opened. With
// direct, reads and writes bypass the page cache.
func Open(name string, direct bool) (*File, error) { return open(name, direct, true) }

// OpenShared opens storage that another host has open too. Reads and writes
// bypass the page cache. A file is not locked, because some file systems would
// lock out the other host.
func OpenShared(name string) (*File, error) { return open(name, true, false) }

func open(name string, direct, lock bool) (*File, error) {
	flags := os.O_RDWR
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	block := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if block {
		flags |= unix.O_EXCL // fails if it is mounted or in a volume group
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
	d.stable = sync.OnceValues(d.openStable)
	if err := d.measure(); err != nil {
		f.Close()
		return nil, err
	}
	if direct {
		d.aio = newAIO(f)
	}
	return d, nil
}

// measure finds out about sizes, and returns an error if the disk can't be used
// with them.
func (d *File) measure() (err error) {
	if d.size, err = d.f.Seek(0, 2); err != nil {
		return err
	}
	d.sector = leastSector
	if d.block {
		n, err := unix.IoctlGetInt(int(d.f.Fd()), unix.BLKSSZGET)
		if err != nil {
			return d.named("ask for the sectors of", 0, err)
		}
		if d.sector = int64(n); n < leastSector || n > Align || n&(n-1) != 0 {
			return fmt.Errorf("%s has sectors of %d bytes: only those of %d to %d can be used", d.f.Name(), n, leastSector, Align)
		}
	}
	var known bool
	if d.unit, known = directUnit(d.f); d.block && !known {
		d.unit, known = d.sector, true
	}
	least := int64(leastSector)
	if known {
		least = d.unit
	}
	switch {
	case d.size == 0:
		return fmt.Errorf("%s has no bytes: give it the size of the other host's copy", d.f.Name())
	case d.direct && d.size%least != 0:
		// The end of the last block could not be written.
		return fmt.Errorf("%s has %d bytes, no multiple of %d: with cache = \"none\" the last ones can't be written. Use cache = \"writeback\", or another size on both hosts", d.f.Name(), d.size, least)
	}
	return nil
}

// directUnit returns the alignment that O_DIRECT needs for a file or block device,
// and whether the system said so.
func directUnit(f *os.File) (unit int64, known bool) {
	var st unix.Statx_t // Linux 6.1, and not of all file systems
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		unit = int64(max(st.Dio_mem_align, st.Dio_offset_align))
	}
	if unit <= 0 || unit > Align || unit&(unit-1) != 0 {
		return Align, false // suits every disk
	}
	return max(unit, leastSector), true
}

// Close closes the disk, when reads and writes past the page cache that are under way
// have ended. Writes that were not flushed are left to the kernel. No other request
// may be under way, and none may come later.
func (d *File) Close() error {
	if d.aio != nil {
		d.aio.close()
	}
	if s := d.past.Load(); s != nil {
		s.Close()
	}
	return d.f.Close()
}

// Name returns the name that the disk was opened by.
func (d *File) Name() string { return d.f.Name() }

// Size returns the length of the disk in bytes, as it was when it was opened.
func (d *File) Size() int64 { return d.size }

// Sector returns the size of the disk's sectors in bytes: of a block device the
// smallest range that it can change as a whole, of a file 512.
func (d *File) Sector() int64 { return d.sector }

// ReadStable fills p from offset off with what the disk has, past the page
// cache. After a write-back that failed the page cache has what the disk has
// not, and returns it to everybody.
func (d *File) ReadStable(p []byte, off int64) error {
	if d.direct {
		return d.ReadAt(p, off)
	}
	f, err := d.stable()
	if errors.Is(err, syscall.EINVAL) {
		return d.readForgotten(p, off)
	} else if err != nil {
		return err
	}
	if d.fits(p, off) {
		_, err := f.ReadAt(p, off)
		return err
	}
	return d.around(f.ReadAt, p, off, func(b []byte, from int64) error {
		copy(p, b[off-from:])
		return nil
	})
}

// openStable opens the disk for ReadStable. It fails with EINVAL if the file
// system has no direct I/O.
func (d *File) openStable() (*os.File, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", d.f.Fd()), os.O_RDONLY|unix.O_DIRECT, 0)
	if err == nil {
		d.past.Store(f)
	}
	return f, err
}

// readForgotten is ReadStable where there is no direct I/O: it has the page
// cache write the range back, and forget it.
func (d *File) readForgotten(p []byte, off int64) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	fd := int(d.f.Fd())
	if err := unix.SyncFileRange(fd, off, int64(len(p)), all); err != nil {
		return d.named("write back", off, err)
	}
	if err := d.Forget(off, int64(len(p))); err != nil {
		return err
	}
	return d.ReadAt(p, off)
}

// Forget drops the clean pages of a range from the page cache.
func (d *File) Forget(off, n int64) error {
	return d.named("forget", off, unix.Fadvise(int(d.f.Fd()), off, n, unix.FADV_DONTNEED))
}

// fits reports whether a request is aligned as O_DIRECT requires.
func (d *File) fits(p []byte, off int64) bool {
	return d.whole(int64(addressOf(p))|off, int64(len(p)))
}

// whole reports whether a range is one of whole blocks.
func (d *File) whole(off, n int64) bool { return (off|n)&(d.unit-1) == 0 }

// ReadAt fills p from offset off.
func (d *File) ReadAt(p []byte, off int64) error {
	if d.direct && !d.fits(p, off) {
		return d.around(d.read, p, off, func(b []byte, from int64) error {
			copy(p, b[off-from:])
			return nil
		})
	}
	_, err := d.read(p, off)
	return err
}

// read is ReadAt of a request that O_DIRECT accepts.
func (d *File) read(p []byte, off int64) (int, error) {
	if d.aio == nil {
		return d.f.ReadAt(p, off)
	}
	n, err := d.aio.do(aioRead, p, off, 0, func() (int, error) { return d.f.ReadAt(p, off) })
	return n, d.named("read", off, err)
}

// named adds the file and the offset to an error that does not have them yet.
func (d *File) named(what string, off int64, err error) error {
	var pe *os.PathError
	if err == nil || errors.As(err, &pe) {
		return err
	}
	return fmt.Errorf("%s %s at %d: %w", what, d.f.Name(), off, err)
}

// blocks returns the range of the blocks that a range is in.
func (d *File) blocks(off, n int64) (from, to int64) {
	return off &^ (d.unit - 1), (off + n + d.unit - 1) &^ (d.unit - 1)
}

// around reads the blocks that p's range is in, which begin at from, by read and
// calls use with them.
func (d *File) around(read func([]byte, int64) (int, error), p []byte, off int64, use func(b []byte, from int64) error) error {
	from, to := d.blocks(off, int64(len(p)))
	b := AlignedBuffer(int(to - from))
	defer FreeBuffer(b)
	n, err := read(b, from)
	if int64(n) < off-from+int64(len(p)) {
		return err
	}
	return use(b[:n], from)
}

// TryReadAt fills p if the page cache has all of it, and reports whether it
// did.
func (d *File) TryReadAt(p []byte, off int64) bool {
	if d.direct {
		return false
	}
	n, err := unix.Preadv2(int(d.f.Fd()), [][]byte{p}, off, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}

// QuickWrites reports whether writes go to the page cache.
func (d *File) QuickWrites() bool { return !d.direct }

// WriteAt writes p at offset off. With fua (force unit access) it returns when
// p is on stable storage.
func (d *File) WriteAt(p []byte, off int64, fua bool) error {
	if !d.direct {
		return d.write(p, off, fua)
	}
	defer d.part.Unlock(d.lock(off, int64(len(p))))
	if !d.whole(off, int64(len(p))) {
		return d.around(d.read, p, off, func(b []byte, from int64) error {
			copy(b[off-from:], p)
			return d.write(b, from, fua)
		})
	}
	if !d.fits(p, off) {
		b := AlignedBuffer(len(p))
		defer FreeBuffer(b)
		copy(b, p)
		p = b
	}
	return d.write(p, off, fua)
}

// lock locks the blocks of a range for a change: alone if it changes a part of a
// block, and else beside others.
func (d *File) lock(off, n int64) rangelock.Span {
	if d.whole(off, n) {
		return d.part.Share(off, n)
	}
	from, to := d.blocks(off, n)
	return d.part.Lock(from, to-from)
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

// writeAlone writes by a blocking system call.
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

// Flush returns when stable storage has every write that completed before.
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

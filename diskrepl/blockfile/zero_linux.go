package blockfile

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Zero makes n bytes from offset off read as zeroes. It keeps the space
// allocated if keep is set.
func (d *File) Zero(off, n int64, keep, fua bool) error {
	from, to := d.sectors(off, n)
	if from >= to {
		from, to = off, off // less than a sector
	}
	err := d.writeZeroes(off, from-off)
	if err == nil && from < to {
		err = d.zeroSectors(from, to-from, keep)
	}
	if err == nil {
		err = d.writeZeroes(to, off+n-to)
	}
	if err == nil && fua && n > 0 {
		err = d.Flush()
	}
	return err
}

// sectors returns the range of the whole sectors inside a range. A file takes any.
func (d *File) sectors(off, n int64) (from, to int64) {
	if !d.block {
		return off, off + n
	}
	return (off + d.sector - 1) / d.sector * d.sector, (off + n) / d.sector * d.sector
}

// zeroSectors zeroes whole sectors in the first way that the disk has.
func (d *File) zeroSectors(off, n int64, keep bool) error {
	// Each of these guarantees zeroes, also of a block device.
	modes := []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}
	if keep {
		modes = modes[1:]
	}
	for _, mode := range modes {
		if err := d.fallocate(mode|unix.FALLOC_FL_KEEP_SIZE, off, n); !unsupported(err) {
			return err
		}
	}
	return d.writeZeroes(off, n)
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

// Trim says that n bytes from offset off are not needed any more. It frees what the
// disk can free of them, and else does nothing. Until it is written again, what a
// block device freed reads as anything.
func (d *File) Trim(off, n int64, fua bool) error {
	from, to := d.sectors(off, n)
	if from >= to {
		return nil
	}
	var err error
	if d.block {
		err = d.discard(from, to-from)
	} else {
		err = d.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	}
	if unsupported(err) {
		err = nil
	}
	if err == nil && fua {
		err = d.Flush()
	}
	return err
}

// unsupported reports whether an error says that the disk, or its file system,
// does not implement what it was asked to do.
func unsupported(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV)
}

// discard frees sectors of a block device. To punch a hole would ask for zeroes as
// well, which a thin volume and many drives do not promise: they would free nothing.
// Of what it is given the device frees the units that it has.
func (d *File) discard(off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	return d.alter("discard", off, n, func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
		runtime.KeepAlive(&span)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

func (d *File) fallocate(mode uint32, off, n int64) error {
	return d.alter("fallocate", off, n, func() error { return unix.Fallocate(int(d.f.Fd()), mode, off, n) })
}

// alter changes a range by a system call.
func (d *File) alter(what string, off, n int64, call func() error) error {
	if d.direct {
		// A write of a part of a block writes back what it read of the rest.
		defer d.part.Unlock(d.lock(off, n))
	}
	for {
		if err := call(); err != unix.EINTR {
			return d.named(what, off, err)
		}
	}
}

package evtchn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Path is the device node of Linux' evtchn driver.
const Path = "/dev/xen/evtchn"

// ioctls of the driver: _IOC(_IOC_NONE, 'E', number, size of the argument).
const (
	ioctlBindVIRQ        = 4<<16 | 'E'<<8
	ioctlBindInterdomain = 8<<16 | 'E'<<8 | 1
	ioctlBindUnbound     = 4<<16 | 'E'<<8 | 2
	ioctlUnbind          = 4<<16 | 'E'<<8 | 3
	ioctlNotify          = 4<<16 | 'E'<<8 | 4
)

// A Device holds ports of this domain. Its methods may be called from several
// goroutines. Close unbinds all ports, as the end of the process does.
type Device struct {
	f *os.File
}

// Open opens the driver.
func Open() (*Device, error) { return open(Path) }

func open(path string) (*Device, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("evtchn: %w", ErrNoDevice)
	case err != nil:
		return nil, fmt.Errorf("evtchn: open %s: %w", path, err)
	}
	// The descriptor does not block, so that Wait waits in the runtime's poller and
	// Close ends it.
	return &Device{os.NewFile(uintptr(fd), path)}, nil
}

// Close unbinds all ports. A Wait under way returns os.ErrClosed.
func (d *Device) Close() error { return d.f.Close() }

// BindVIRQ binds a virtual IRQ (VIRQ_* of public/xen.h) to a new port.
func (d *Device) BindVIRQ(virq uint32) (Port, error) {
	return d.bind(fmt.Sprintf("bind VIRQ %d", virq), ioctlBindVIRQ, virq)
}

// BindInterdomain binds a new port to a domain's port, which must accept this domain
// and be unbound. The new port is pending at once, whether the other end was notified or
// not.
func (d *Device) BindInterdomain(domid uint32, remote Port) (Port, error) {
	return d.bind(fmt.Sprintf("bind port %d of domain %d", remote, domid), ioctlBindInterdomain, domid, uint32(remote))
}

// BindUnbound gives a new port that the domain may bind.
func (d *Device) BindUnbound(domid uint32) (Port, error) {
	return d.bind(fmt.Sprintf("make a port for domain %d", domid), ioctlBindUnbound, domid)
}

// Unbind frees a port of the Device.
func (d *Device) Unbind(p Port) error {
	_, err := d.bind(fmt.Sprintf("unbind port %d", p), ioctlUnbind, uint32(p))
	return err
}

// Notify sends an event to the other end of a port.
func (d *Device) Notify(p Port) error {
	_, err := d.bind(fmt.Sprintf("notify port %d", p), ioctlNotify, uint32(p))
	return err
}

func (d *Device) bind(what string, request uintptr, arg ...uint32) (Port, error) {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("evtchn: %s: %w", what, err)
	}
	var port uintptr
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		port, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(&arg[0])))
	})
	runtime.KeepAlive(arg)
	switch {
	case err != nil: // the runtime's own error for a closed file is not os.ErrClosed
		return 0, fmt.Errorf("evtchn: %s: %w", what, os.ErrClosed)
	case errno != 0:
		return 0, fmt.Errorf("evtchn: %s: %w", what, errno)
	}
	return Port(port), nil
}

// SetDeadline has a Wait end with os.ErrDeadlineExceeded at a time; the zero time sets
// no limit.
func (d *Device) SetDeadline(t time.Time) error { return d.f.SetReadDeadline(t) }

// Wait waits for events and returns the ports that have one, each of which is masked
// until it is given to Unmask: events of the meantime count as one. The result is valid
// until the next Wait.
func (d *Device) Wait(buf []Port) ([]Port, error) {
	if len(buf) == 0 {
		return nil, nil
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), 4*len(buf))
	n, err := d.f.Read(raw)
	if err != nil {
		return nil, fmt.Errorf("evtchn: wait: %w", err)
	}
	return buf[:n/4], nil
}

// Unmask lets ports that Wait returned have events again. One that came meanwhile is
// returned by the next Wait.
func (d *Device) Unmask(ports ...Port) error {
	raw := make([]byte, 0, 4*len(ports))
	for _, p := range ports {
		raw = binary.NativeEndian.AppendUint32(raw, uint32(p))
	}
	if len(raw) == 0 {
		return nil
	}
	if _, err := d.f.Write(raw); err != nil {
		return fmt.Errorf("evtchn: unmask %d: %w", ports, err)
	}
	return nil
}

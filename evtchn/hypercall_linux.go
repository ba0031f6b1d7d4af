package evtchn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Hypercalls, by the privcmd driver (Linux' include/uapi/xen/privcmd.h): a structure of
// the number and five arguments, u64 each.
const (
	privcmdPath    = "/dev/xen/privcmd"
	bufferPath     = "/dev/xen/hypercall" // memory that the kernel leaves where it is; since Linux 4.18
	ioctlHypercall = 48<<16 | 'P'<<8      // _IOC(_IOC_NONE, 'P', 0, size)

	hypercallEventChannel = 32 // __HYPERVISOR_event_channel_op of public/xen.h
	opStatus              = 5  // EVTCHNOP_status
	opAllocUnbound        = 6  // EVTCHNOP_alloc_unbound
)

// A Hypervisor answers questions about the ports of any domain. Its methods may be called
// from several goroutines.
type Hypervisor struct {
	mu  sync.Mutex
	f   *os.File
	buf []byte // a page that the hypervisor reads and writes
}

// OpenHypervisor opens the privcmd driver.
func OpenHypervisor() (*Hypervisor, error) {
	f, err := os.OpenFile(privcmdPath, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("evtchn: no %s: is this a dom0?", privcmdPath)
	case err != nil:
		return nil, fmt.Errorf("evtchn: %w", err)
	}
	buf, err := hypercallPage()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("evtchn: memory for hypercalls: %w", err)
	}
	return &Hypervisor{f: f, buf: buf}, nil
}

// hypercallPage returns a page whose place in memory does not change. On kernels without
// the driver for that it is locked memory, which is good enough as long as the page is
// not migrated, as in libxencall.
func hypercallPage() ([]byte, error) {
	size := os.Getpagesize()
	b, err := os.OpenFile(bufferPath, os.O_RDWR, 0)
	if err == nil {
		defer b.Close() // the mapping stays
		return unix.Mmap(int(b.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_LOCKED)
}

// Close frees what OpenHypervisor took.
func (h *Hypervisor) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.buf != nil {
		unix.Munmap(h.buf)
		h.buf = nil
	}
	return h.f.Close()
}

// Ports returns the ports of a domain that are in use, in ascending order. The error is
// ErrNoDomain if there is no such domain.
func (h *Hypervisor) Ports(domid uint32) ([]State, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []State
	for p := Port(1); ; p++ { // port 0 is never given away
		s, err := h.status(domid, p)
		switch {
		case errors.Is(err, unix.EINVAL):
			return all, nil // beyond the ports that the domain has
		case errors.Is(err, unix.ESRCH):
			return nil, fmt.Errorf("evtchn: ports of domain %d: %w", domid, ErrNoDomain)
		case err != nil:
			return nil, fmt.Errorf("evtchn: port %d of domain %d: %w", p, domid, err)
		case s.Kind != Closed:
			all = append(all, s)
		}
	}
}

func (h *Hypervisor) status(domid uint32, p Port) (State, error) {
	if h.buf == nil {
		return State{}, os.ErrClosed
	}
	encodeStatus(h.buf, domid, p)
	if err := h.call(hypercallEventChannel, opStatus, uint64(uintptr(unsafe.Pointer(&h.buf[0])))); err != nil {
		return State{}, err
	}
	return decodeStatus(h.buf), nil
}

// AllocUnbound makes a port in a domain that another domain may bind, on behalf of the
// first. Nobody but the domain itself can free that port: see State.Kind for what has
// become of one.
func (h *Hypervisor) AllocUnbound(domid, remote uint32) (Port, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.buf == nil {
		return 0, os.ErrClosed
	}
	// struct evtchn_alloc_unbound: two domains (u16), and the port (u32).
	binary.NativeEndian.PutUint16(h.buf, uint16(domid))
	binary.NativeEndian.PutUint16(h.buf[2:], uint16(remote))
	binary.NativeEndian.PutUint32(h.buf[4:], 0)
	err := h.call(hypercallEventChannel, opAllocUnbound, uint64(uintptr(unsafe.Pointer(&h.buf[0]))))
	if errors.Is(err, unix.ESRCH) {
		err = ErrNoDomain
	}
	if err != nil {
		return 0, fmt.Errorf("evtchn: make a port in domain %d for domain %d: %w", domid, remote, err)
	}
	return Port(binary.NativeEndian.Uint32(h.buf[4:])), nil
}

// Port returns what Xen knows of one port, Closed if the domain has no such port.
func (h *Hypervisor) Port(domid uint32, p Port) (State, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.status(domid, p)
	switch {
	case errors.Is(err, unix.EINVAL):
		return State{Port: p}, nil
	case errors.Is(err, unix.ESRCH):
		err = ErrNoDomain
	}
	if err != nil {
		return s, fmt.Errorf("evtchn: port %d of domain %d: %w", p, domid, err)
	}
	return s, nil
}

func (h *Hypervisor) call(op uint64, args ...uint64) error {
	var c [6]uint64
	c[0] = op
	copy(c[1:], args)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, h.f.Fd(), ioctlHypercall, uintptr(unsafe.Pointer(&c)))
	if errno != 0 {
		return errno
	}
	return nil
}

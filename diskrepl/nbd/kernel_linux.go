package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Commands, attributes and flags of the kernel's "nbd" generic netlink family
// (uapi/linux/nbd-netlink.h, uapi/linux/nbd.h).
const (
	genlConnect     = 1
	genlDisconnect  = 2
	genlReconfigure = 3
	genlVersion     = 1

	attrIndex           = 1
	attrSizeBytes       = 2
	attrBlockSize       = 3
	attrTimeout         = 4
	attrServerFlags     = 5
	attrSockets         = 7
	attrDeadConnTimeout = 8
	attrBackendID       = 10
	attrSockItem        = 1
	attrSockFD          = 1
)

// kernelBlock is the logical block size of the kernel's devices: a disk's
// partition tables and file systems depend on it, so it never changes.
const kernelBlock = 512

// ErrNoKernelNBD: the kernel can't be asked for network block devices.
var ErrNoKernelNBD = errors.New("no network block devices in this kernel: the nbd module is not loaded")

// A KernelDevice is an export as /dev/nbdN of this host.
type KernelDevice struct {
	Index int
	s     *Server
	name  string
	done  []chan error
}

// Path is the device's node.
func (k *KernelDevice) Path() string { return fmt.Sprintf("/dev/nbd%d", k.Index) }

// KernelOptions are how the kernel treats an export.
type KernelOptions struct {
	// Connections is how many requests' streams there are; the kernel spreads
	// processors over them. 0: one.
	Connections int
	// Index of the device; below 0: a free one.
	Index int
	// DeadTimeout is how long requests wait for a server that went away to
	// come back, before they fail.
	DeadTimeout time.Duration
	// Reconfigure gives new connections to a device whose server went away.
	Reconfigure bool
	// ID is what the kernel shows as the device's backend, and wants to hear
	// again at a reconfiguration.
	ID string
}

// Attach makes an export a block device of this host. The connections are
// socket pairs within this process, so there is nothing to negotiate.
func (s *Server) Attach(name string, o KernelOptions) (*KernelDevice, error) {
	fail := func(err error) (*KernelDevice, error) { return nil, fmt.Errorf("nbd: attach %s: %w", name, err) }
	e := s.byName(name)
	if e == nil {
		return fail(errors.New("not served"))
	}
	family, err := netlink.GenlFamilyGet("nbd")
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = ErrNoKernelNBD
		}
		return fail(err)
	}
	k := &KernelDevice{s: s, name: name}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close() // the kernel has its own reference, or will not take it
		}
	}()
	var ours []net.Conn
	abort := func(err error) (*KernelDevice, error) {
		for _, c := range ours {
			c.Close()
		}
		return fail(err)
	}
	sockets := nl.NewRtAttr(attrSockets|unix.NLA_F_NESTED, nil)
	for range max(o.Connections, 1) {
		nc, f, err := socketPair()
		if err != nil {
			return abort(err)
		}
		ours, theirs = append(ours, nc), append(theirs, f)
		item := sockets.AddRtAttr(attrSockItem|unix.NLA_F_NESTED, nil)
		item.AddRtAttr(attrSockFD, nl.Uint32Attr(uint32(f.Fd())))
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	command := uint8(genlConnect)
	if o.Reconfigure {
		command = genlReconfigure
	}
	req.AddData(&nl.Genlmsg{Command: command, Version: genlVersion})
	if o.Index >= 0 {
		req.AddData(nl.NewRtAttr(attrIndex, nl.Uint32Attr(uint32(o.Index))))
	}
	req.AddData(nl.NewRtAttr(attrSizeBytes, nl.Uint64Attr(uint64(e.Device.Size()))))
	req.AddData(nl.NewRtAttr(attrBlockSize, nl.Uint64Attr(kernelBlock)))
	req.AddData(nl.NewRtAttr(attrServerFlags, nl.Uint64Attr(uint64(e.flags()&^flagSendDF))))
	req.AddData(nl.NewRtAttr(attrDeadConnTimeout, nl.Uint64Attr(uint64(o.DeadTimeout/time.Second))))
	if o.ID != "" {
		req.AddData(nl.NewRtAttr(attrBackendID, nl.ZeroTerminated(o.ID)))
	}
	req.AddData(sockets)
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return abort(err)
	}
	k.Index = o.Index
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return abort(err)
		}
		for _, a := range attrs {
			if a.Attr.Type&0x3fff == attrIndex && len(a.Value) >= 4 {
				k.Index = int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	}
	if k.Index < 0 {
		return abort(errors.New("the kernel does not say which device it took"))
	}
	for _, nc := range ours {
		done := make(chan error, 1)
		k.done = append(k.done, done)
		go func() { done <- s.ServeExport(nc, name) }()
	}
	return k, nil
}

// Detach takes the device away. The kernel fails the requests that it still
// has, so whoever uses the device must be gone before.
func (k *KernelDevice) Detach() error {
	family, err := netlink.GenlFamilyGet("nbd")
	if err != nil {
		return fmt.Errorf("nbd: detach %s: %w", k.Path(), err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: genlDisconnect, Version: genlVersion})
	req.AddData(nl.NewRtAttr(attrIndex, nl.Uint32Attr(uint32(k.Index))))
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("nbd: detach %s: %w", k.Path(), err)
	}
	for _, done := range k.done {
		<-done
	}
	return nil
}

// socketPair returns both ends of a stream: ours, and the kernel's.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "nbd")
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return nc, os.NewFile(uintptr(fds[1]), "nbd-kernel"), nil
}

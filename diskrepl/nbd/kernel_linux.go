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
	attrServerFlags     = 5
	attrSockets         = 7
	attrDeadConnTimeout = 8
	attrSockItem        = 1
	attrSockFD          = 1
)

// kernelBlock is the logical block size of the kernel's devices: a disk's
// partition tables and file systems depend on it, so it never changes.
const kernelBlock = 512

// deadTimeout is how long the kernel keeps requests for a server that went away
// to come back, before it fails them.
const deadTimeout = 10 * time.Minute

// ErrNoKernelNBD: the kernel can't be asked for network block devices.
var ErrNoKernelNBD = errors.New("no network block devices in this kernel: the nbd module is not loaded")

// A KernelDevice is an export as /dev/nbdN of this host.
type KernelDevice struct {
	Index int
	done  chan error // of the server's side
}

// Path is the device's node.
func (k *KernelDevice) Path() string { return fmt.Sprintf("/dev/nbd%d", k.Index) }

// Attach makes an export a block device of this host, at a free number. The
// connection is a socket pair within this process, so there is nothing to
// negotiate. When the process ends without a Detach, the kernel keeps what is
// asked of the device for ten minutes, and a Reattach by another process serves
// it: what was under way is asked again, within half a minute.
func (s *Server) Attach(name string) (*KernelDevice, error) {
	k, err := s.attach(name, genlConnect, -1)
	if err != nil {
		return nil, fmt.Errorf("nbd: attach %s: %w", name, err)
	}
	return k, nil
}

// Reattach makes an export the one behind a block device whose server went
// away.
func (s *Server) Reattach(name string, index int) (*KernelDevice, error) {
	k, err := s.attach(name, genlReconfigure, index)
	if err != nil {
		return nil, fmt.Errorf("nbd: attach %s to /dev/nbd%d again: %w", name, index, err)
	}
	return k, nil
}

func (s *Server) attach(name string, command uint8, index int) (*KernelDevice, error) {
	e := s.byName(name)
	if e == nil {
		return nil, errors.New("not served")
	}
	family, err := netlink.GenlFamilyGet("nbd")
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrNoKernelNBD
	} else if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close() // the kernel has its own reference, or did not take it
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: command, Version: genlVersion})
	if index >= 0 {
		req.AddData(nl.NewRtAttr(attrIndex, nl.Uint32Attr(uint32(index))))
	}
	req.AddData(nl.NewRtAttr(attrDeadConnTimeout, nl.Uint64Attr(uint64(deadTimeout/time.Second))))
	req.AddData(nl.NewRtAttr(attrSizeBytes, nl.Uint64Attr(uint64(e.Device.Size()))))
	req.AddData(nl.NewRtAttr(attrBlockSize, nl.Uint64Attr(kernelBlock)))
	req.AddData(nl.NewRtAttr(attrServerFlags, nl.Uint64Attr(uint64(e.flags()&^flagSendDF))))
	sockets := nl.NewRtAttr(attrSockets|unix.NLA_F_NESTED, nil)
	sockets.AddRtAttr(attrSockItem|unix.NLA_F_NESTED, nil).AddRtAttr(attrSockFD, nl.Uint32Attr(uint32(theirs.Fd())))
	req.AddData(sockets)
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		ours.Close()
		return nil, err
	}
	k := &KernelDevice{Index: index, done: make(chan error, 1)}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			break
		}
		for _, a := range attrs {
			if a.Attr.Type&0x3fff == attrIndex && len(a.Value) >= 4 {
				k.Index = int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	}
	if k.Index < 0 {
		ours.Close()
		return nil, errors.New("the kernel does not say which device it took")
	}
	go func() { k.done <- s.ServeExport(ours, name) }()
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
	<-k.done
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

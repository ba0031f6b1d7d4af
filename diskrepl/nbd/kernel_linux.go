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

// deadTimeout is how long the kernel keeps requests while there is no server,
// before it fails them.
const deadTimeout = 10 * time.Minute

// Attach makes an export a block device of this host, with a free number. The
// server and the kernel are connected by a socket pair, without negotiation. If
// this process ends without a Detach, the kernel keeps the requests for the
// device for ten minutes. A Reattach in another process serves the device
// again; the kernel repeats requests that were in flight within half a minute.
//
// It returns [ErrNoKernelNBD] if the kernel has no nbd module.
func (s *Server) Attach(name string) (*KernelDevice, error) {
	k, err := s.attach(name, genlConnect, -1)
	if err != nil {
		return nil, fmt.Errorf("nbd: attach %s: %w", name, err)
	}
	return k, nil
}

// Reattach connects an export to a block device whose server ended.
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
	defer theirs.Close() // the kernel has its own reference, or refused
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: command, Version: genlVersion})
	if index >= 0 {
		req.AddData(nl.NewRtAttr(attrIndex, nl.Uint32Attr(uint32(index))))
	}
	req.AddData(nl.NewRtAttr(attrDeadConnTimeout, nl.Uint64Attr(uint64(deadTimeout/time.Second))))
	req.AddData(nl.NewRtAttr(attrSizeBytes, nl.Uint64Attr(uint64(e.Device.Size()))))
	req.AddData(nl.NewRtAttr(attrBlockSize, nl.Uint64Attr(uint64(e.sector()))))
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

// Detach removes the device. The kernel fails requests that it still has, so
// all users of the device must have ended before.
func (k *KernelDevice) Detach() error {
	if err := Disconnect(k.Index); err != nil {
		return err
	}
	<-k.done
	return nil
}

// Disconnect removes a device whose server ended. It does nothing if there is
// none.
func Disconnect(index int) error {
	family, err := netlink.GenlFamilyGet("nbd")
	if err != nil {
		return fmt.Errorf("nbd: detach %s: %w", DevicePath(index), err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: genlDisconnect, Version: genlVersion})
	req.AddData(nl.NewRtAttr(attrIndex, nl.Uint32Attr(uint32(index))))
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("nbd: detach %s: %w", DevicePath(index), err)
	}
	return nil
}

// socketPair returns the two ends of a stream: the server's and the kernel's.
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

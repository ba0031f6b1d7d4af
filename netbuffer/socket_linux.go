package netbuffer

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A socketTap is a packet socket at a vif. It sees a packet before the redirect
// does, and does not see it again when it comes back from the ifb.
//
// The first packet of a watch stays in the socket. There is room for few, so it
// keeps the others out until the next watch: nobody has to be woken for them, and
// arming is a read. To swap a filter instead costs a tenth of a millisecond.
//
// The socket sees the packets of both queues. A packet that it saw before it was
// armed and that the redirect sends to the new queue, on another CPU during a
// Seal, has no event from it: Release looks at the queue, and nobody can seal
// earlier.
type socketTap struct {
	file *os.File
	conn syscall.RawConn
	done chan struct{}

	mu    sync.Mutex // held over system calls that don't wait
	first func()     // nil after the first packet
}

func newSocketTap(vif netlink.Link) (*socketTap, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	all := uint16(unix.ETH_P_ALL)
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) }, // the least there is
		func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: vif.Attrs().Index})
		},
	} {
		if err := set(); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set up packet socket: %w", err)
		}
	}
	t := &socketTap{file: os.NewFile(uintptr(fd), "packet socket"), done: make(chan struct{})}
	if t.conn, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return nil, err
	}
	go t.run()
	return t, nil
}

// read takes a packet out of the socket, or leaves it there if flags has
// MSG_PEEK, and reports whether there was one.
func read(fd uintptr, flags int) bool {
	var b [1]byte
	for {
		_, _, err := unix.Recvfrom(int(fd), b[:], flags|unix.MSG_DONTWAIT)
		switch err {
		case nil:
			return true
		case unix.EINTR, unix.ENETDOWN: // ENETDOWN: said once, when the vif goes down
		default:
			return false
		}
	}
}

// run waits for packets. The runtime wakes it for every one that gets into the
// socket, not only for the first.
func (t *socketTap) run() {
	defer close(t.done)
	for {
		var first func()
		err := t.conn.Read(func(fd uintptr) bool {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.first == nil || !read(fd, unix.MSG_PEEK) {
				return false
			}
			first, t.first = t.first, nil
			return true
		})
		if err != nil {
			return // closed
		}
		first()
	}
}

func (t *socketTap) way() Way { return PacketSocket }

func (t *socketTap) arm(_ int, first func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.first = first
	return t.conn.Control(func(fd uintptr) {
		for read(fd, 0) { // what came before
		}
	})
}

func (t *socketTap) close() {
	t.file.Close()
	<-t.done
}

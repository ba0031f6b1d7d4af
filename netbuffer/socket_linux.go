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
// does, and does not see it again when it comes back from the ifb. Between
// watches a filter keeps all packets out of the socket.
//
// It sees the packets of both queues. A packet that it saw before it was armed
// and that the redirect sends to the new queue, on another CPU during a Seal, has
// no event from it: Release looks at the queue, and nobody can seal earlier.
type socketTap struct {
	file *os.File
	conn syscall.RawConn
	done chan struct{}

	mu    sync.Mutex // held over system calls that don't wait
	first func()     // nil between watches
}

// Filters of a packet socket: how many bytes of a packet it takes.
const none, some = 0, 1

func newSocketTap(vif netlink.Link) (*socketTap, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	all := uint16(unix.ETH_P_ALL)
	for _, f := range []func() error{
		func() error { return take(fd, none) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		// The kernel makes it a few packets.
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) },
		func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: vif.Attrs().Index})
		},
	} {
		if err := f(); err != nil {
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

// take replaces the filter of a packet socket.
func take(fd int, n uint32) error {
	f := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: n}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &f})
}

// drain empties a packet socket and reports whether it had a packet.
func drain(fd int) (had bool) {
	var b [1]byte
	for {
		_, err := unix.Read(fd, b[:])
		switch err {
		case nil:
			had = true
		case unix.EINTR, unix.ENETDOWN: // ENETDOWN: said once, when the vif goes down
		default:
			return had
		}
	}
}

func (t *socketTap) run() {
	defer close(t.done)
	for {
		var first func()
		err := t.conn.Read(func(fd uintptr) bool {
			t.mu.Lock()
			defer t.mu.Unlock()
			if !drain(int(fd)) {
				return false
			}
			// If the filter can't be replaced more packets come, and find no
			// first.
			_ = take(int(fd), none)
			first, t.first = t.first, nil
			return true
		})
		if err != nil {
			return // closed
		}
		if first != nil {
			first()
		}
	}
}

func (t *socketTap) way() Way { return PacketSocket }

func (t *socketTap) arm(_ int, first func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	cerr := t.conn.Control(func(fd uintptr) {
		drain(int(fd)) // of the watch before
		err = take(int(fd), some)
	})
	if cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("arm packet socket: %w", err)
	}
	t.first = first
	return nil
}

func (t *socketTap) close() {
	t.file.Close()
	<-t.done
}

package blockfile

import (
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An aio has the kernel carry out O_DIRECT requests without a thread for each,
// by io_submit(2). Callers wait on channels.
type aio struct {
	ctx   uintptr  // aio_context_t
	event *os.File // eventfd: a request completed
	free  chan *aioSlot
	slots [aioDepth]aioSlot
	users atomic.Int32 // of do

	// inUse is held, shared, by each request: io_destroy drops the events of those
	// under way, and whoever waits for one would wait for ever.
	inUse  sync.RWMutex
	closed bool // guarded by inUse

	mu         sync.Mutex
	queue      []*iocb // to be submitted
	spare      []*iocb
	submitting bool // a goroutine submits, and takes requests that are queued meanwhile
}

const aioDepth = 128 // requests of a file in flight, at most; others wait

// An iocb is struct iocb of linux/aio_abi.h on a little-endian machine.
type iocb struct {
	data    uint64
	_       uint32 // aio_key, the kernel's
	rwFlags uint32
	opcode  uint16
	_       int16 // aio_reqprio
	fd      uint32
	buf     uint64
	bytes   uint64
	offset  int64
	_       uint64
	flags   uint32
	resFD   uint32
}

// An ioEvent is struct io_event of linux/aio_abi.h.
type ioEvent struct {
	data   uint64
	_      uint64 // the iocb
	result int64
	_      int64
}

const (
	aioRead      = 0      // IOCB_CMD_PREAD
	aioWrite     = 1      // IOCB_CMD_PWRITE
	aioFlagResFD = 1 << 0 // IOCB_FLAG_RESFD
	eventsAtOnce = 64
)

type aioSlot struct {
	cb   iocb
	done chan int64 // bytes, or a negative errno
}

// newAIO returns nil if the kernel does not support asynchronous I/O or has no
// context left (/proc/sys/fs/aio-max-nr). Then each request blocks a thread.
func newAIO(f *os.File) *aio {
	a := &aio{free: make(chan *aioSlot, aioDepth)}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, aioDepth, uintptr(unsafe.Pointer(&a.ctx)), 0); errno != 0 {
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Syscall(unix.SYS_IO_DESTROY, a.ctx, 0, 0)
		return nil
	}
	for i := range a.slots {
		s := &a.slots[i]
		s.done = make(chan int64, 1)
		s.cb = iocb{data: uint64(i), fd: uint32(f.Fd()), flags: aioFlagResFD, resFD: uint32(fd)}
		a.free <- s
	}
	a.event = os.NewFile(uintptr(fd), "eventfd") // the runtime's poller waits for it
	go a.reap()
	return a
}

// close frees the context when the requests that are under way have ended.
func (a *aio) close() {
	a.inUse.Lock()
	defer a.inUse.Unlock()
	a.closed = true
	unix.Syscall(unix.SYS_IO_DESTROY, a.ctx, 0, 0)
	a.event.Close()
}

// do reads or writes all of p, unless an error stops it. A request that is the
// only one in flight is faster by a blocking system call, which alone makes.
// After close it returns an error that wraps os.ErrClosed.
func (a *aio) do(opcode uint16, p []byte, off int64, rwFlags uint32, alone func() (int, error)) (n int, err error) {
	a.inUse.RLock()
	defer a.inUse.RUnlock()
	if a.closed {
		return 0, os.ErrClosed
	}
	defer a.users.Add(-1)
	if a.users.Add(1) == 1 {
		return alone()
	}
	var pin runtime.Pinner
	pin.Pin(unsafe.SliceData(p))
	defer pin.Unpin()
	s := <-a.free
	defer func() { a.free <- s }()
	for n < len(p) {
		s.cb.opcode, s.cb.rwFlags = opcode, rwFlags
		s.cb.buf, s.cb.bytes, s.cb.offset = uint64(addressOf(p[n:])), uint64(len(p)-n), off+int64(n)
		a.submit(&s.cb)
		got := <-s.done
		switch {
		case got == -int64(syscall.EAGAIN) && n == 0:
			return alone()
		case got < 0:
			return n, syscall.Errno(-got)
		case got == 0:
			return n, io.ErrUnexpectedEOF
		}
		n += int(got)
	}
	return n, nil
}

// submit hands a request to the kernel, together with others that are queued.
func (a *aio) submit(cb *iocb) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queue = append(a.queue, cb)
	if a.submitting {
		return
	}
	a.submitting = true
	a.mu.Unlock()
	runtime.Gosched() // other goroutines may be about to queue requests
	a.mu.Lock()
	for len(a.queue) > 0 {
		q := a.queue
		a.queue, a.spare = a.spare[:0], nil
		a.mu.Unlock()
		for left := q; len(left) > 0; {
			n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, a.ctx, uintptr(len(left)), uintptr(unsafe.Pointer(unsafe.SliceData(left))))
			if errno != 0 { // of the first request
				a.slots[left[0].data].done <- -int64(errno)
				n = 1
			}
			left = left[n:]
		}
		a.mu.Lock()
		a.spare = q
	}
	a.submitting = false
}

// reap wakes the callers of completed requests.
func (a *aio) reap() {
	var events [eventsAtOnce]ioEvent
	var signal [8]byte // an eventfd has a number to read
	var now unix.Timespec
	for {
		if _, err := a.event.Read(signal[:]); err != nil {
			return // closed
		}
		for {
			n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.ctx, 0, eventsAtOnce, uintptr(unsafe.Pointer(&events)), uintptr(unsafe.Pointer(&now)), 0)
			if errno != 0 || n == 0 {
				break
			}
			for _, e := range events[:n] {
				a.slots[e.data].done <- e.result
			}
		}
	}
}

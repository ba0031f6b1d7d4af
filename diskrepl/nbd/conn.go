package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"xlft/diskrepl/blockfile"
)

const (
	inSize   = 1<<20 + 128<<10 // bytes of the read buffer: a request of 1 MiB and small ones after it
	outSoon  = 256 << 10       // bytes of replies that are sent before more are produced
	inFlight = 64 << 20        // bytes of requests that wait for the disk, at most; at least MaxRequest
	keepOut  = 4 << 20         // a larger buffer for replies is not reused

	requestCost = 4 << 10 // bytes of inFlight that a request without data counts as
)

// A conn is a client's connection in the transmission phase.
//
// Its reader serves requests that need no wait itself and batches their
// replies: it makes no system call while its buffer has more requests. Workers
// serve all other requests.
type conn struct {
	nc         net.Conn
	export     *Export
	dev        Device
	quick      QuickDevice // nil if the Device does not implement it
	size       uint64
	structured bool
	done       chan struct{} // closed after run

	// Used by the reader only.
	in   []byte
	r, w int

	work   *workers
	memory *semaphore.Weighted

	mu      sync.Mutex
	cond    *sync.Cond
	out     []byte // replies not yet being sent
	spare   []byte
	sending bool
	failed  error // error of a send: the client no longer gets replies
}

func newConn(nc net.Conn, e *Export, structured bool) *conn {
	c := &conn{
		nc: nc, export: e, dev: e.Device, size: uint64(e.Device.Size()), structured: structured,
		done: make(chan struct{}), in: make([]byte, inSize), work: newWorkers(), memory: semaphore.NewWeighted(inFlight),
	}
	c.quick, _ = e.Device.(QuickDevice)
	c.cond = sync.NewCond(&c.mu)
	if u, ok := nc.(*net.UnixConn); ok {
		// Room for a reply of 1 MiB in one piece. If the system allows less,
		// large requests are slower.
		u.SetWriteBuffer(2 << 20)
		u.SetReadBuffer(2 << 20)
	}
	return c
}

// hangUp makes the reader stop. Requests that it has read are still served, but a
// client that does not take the replies in that time is left to itself.
func (c *conn) hangUp(patience time.Duration) {
	c.nc.SetWriteDeadline(time.Now().Add(patience))
	if h, ok := c.nc.(interface{ CloseRead() error }); ok {
		h.CloseRead()
		return
	}
	c.nc.Close()
}

var errDisconnect = errors.New("disconnect")

// run serves until the client disconnects. The error is a protocol error of the
// client or one of its connection.
func (c *conn) run() error {
	err := c.read()
	c.work.end()
	c.flush()
	if errors.Is(err, errDisconnect) || errors.Is(err, io.EOF) && c.r == c.w || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// fill reads until the buffer has n unread bytes; n is at most inSize.
func (c *conn) fill(n int) error {
	for c.w-c.r < n {
		if c.r == c.w {
			c.r, c.w = 0, 0
		} else if c.r+n > len(c.in) {
			c.w = copy(c.in, c.in[c.r:c.w])
			c.r = 0
		}
		if err := c.flush(); err != nil {
			return err
		}
		m, err := c.nc.Read(c.in[c.w:])
		c.w += m
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) read() error {
	for {
		if err := c.fill(requestSize); err != nil {
			return err
		}
		q, err := parseRequest(c.in[c.r:])
		if err != nil {
			return err
		}
		c.r += requestSize
		if err := c.serve(q); err != nil {
			return err
		}
	}
}

// serve serves a request or hands it to a worker.
func (c *conn) serve(q request) error {
	off, n := int64(q.off), int(q.n)
	fua := q.flags&cmdFlagFUA != 0
	if q.cmd == cmdDisc {
		return errDisconnect
	}
	bad := c.check(q)
	switch q.cmd {
	case cmdRead:
		switch {
		case bad != 0:
			c.fail(q, bad, "")
		case n == 0:
			c.emptyRead(q)
		case !c.quickRead(q):
			p, err := c.buffer(n)
			if err != nil {
				return err
			}
			c.work.run(func() { c.slowRead(q, p) })
		}
		return nil
	case cmdWrite:
		if n > MaxRequest {
			return fmt.Errorf("write of %d bytes, at most %d were offered", n, MaxRequest)
		}
		return c.write(q, bad, fua)
	}
	if bad != 0 {
		c.fail(q, bad, "")
		return nil
	}
	if err := c.acquire(requestCost); err != nil {
		return err
	}
	c.work.run(func() {
		defer c.memory.Release(requestCost)
		var err error
		switch q.cmd {
		case cmdFlush:
			err = c.dev.Flush()
		case cmdTrim:
			err = c.dev.Trim(off, int64(q.n), fua)
		case cmdWriteZeroes:
			err = c.dev.Zero(off, int64(q.n), q.flags&cmdFlagNoHole != 0, fua)
		}
		c.answer(q, err)
		c.flushSoon()
	})
	return nil
}

// check returns the NBD error of a request that must not reach the device, or
// 0.
func (c *conn) check(q request) uint32 {
	inside := q.off <= c.size && uint64(q.n) <= c.size-q.off
	allowed := uint16(cmdFlagFUA)
	switch q.cmd {
	case cmdRead:
		if c.structured {
			allowed |= cmdFlagDF
		}
		if q.n > MaxRequest {
			return eOverflow
		}
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole
	case cmdWrite, cmdTrim:
	case cmdFlush:
		if q.off != 0 || q.n != 0 {
			return eInval
		}
	default:
		return eInval
	}
	switch {
	case q.flags&^allowed != 0:
		return eInval
	case c.export.ReadOnly && q.cmd != cmdRead && q.cmd != cmdFlush:
		return ePerm
	case !inside && (q.cmd == cmdWrite || q.cmd == cmdWriteZeroes):
		return eNoSpc
	case !inside:
		return eInval
	}
	return 0
}

// write reads the payload of a write, also of one that is refused, and serves
// it.
func (c *conn) write(q request, bad uint32, fua bool) error {
	n := int(q.n)
	if n <= inSize && bad == 0 && !fua && c.quick != nil && c.quick.QuickWrites() {
		if err := c.fill(n); err != nil {
			return unexpected(err)
		}
		c.answer(q, c.dev.WriteAt(c.in[c.r:c.r+n], int64(q.off), false))
		c.r += n
		return nil
	}
	p, err := c.buffer(n)
	if err != nil {
		return err
	}
	m := copy(p, c.in[c.r:c.w])
	c.r += m
	if m < n {
		if err := c.flush(); err != nil {
			return err
		}
		if _, err := io.ReadFull(c.nc, p[m:]); err != nil {
			return unexpected(err)
		}
	}
	if bad != 0 {
		c.release(p)
		c.fail(q, bad, "")
		return nil
	}
	c.work.run(func() {
		err := c.dev.WriteAt(p, int64(q.off), fua)
		c.release(p)
		c.answer(q, err)
		c.flushSoon()
	})
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("payload of a write: %w", err)
}

// acquire reserves n bytes of inFlight, and waits until they are free.
func (c *conn) acquire(n int64) error {
	if c.memory.TryAcquire(n) {
		return nil
	}
	// Replies must be sent meanwhile, or memory is never given back.
	if err := c.flush(); err != nil {
		return err
	}
	return c.memory.Acquire(context.Background(), n)
}

// buffer reserves n bytes and returns an aligned buffer of that size.
func (c *conn) buffer(n int) ([]byte, error) {
	if err := c.acquire(int64(n)); err != nil {
		return nil, err
	}
	return blockfile.AlignedBuffer(n), nil
}

func (c *conn) release(p []byte) {
	c.memory.Release(int64(len(p)))
	blockfile.FreeBuffer(p)
}

// dataHeader returns the length of the header before the data of a read.
func (c *conn) dataHeader() int {
	if c.structured {
		return chunkSize + 8
	}
	return simpleSize
}

func (c *conn) putDataHeader(b []byte, q request) {
	if !c.structured {
		putSimple(b, 0, q.cookie)
		return
	}
	putChunk(b, chunkFlagDone, chunkOffsetData, q.cookie, 8+q.n)
	binary.BigEndian.PutUint64(b[chunkSize:], q.off)
}

// quickRead serves a read into the replies if it needs no wait, and reports
// whether it did.
func (c *conn) quickRead(q request) bool {
	if c.quick == nil || q.n > 1<<20 || q.n == 0 {
		return false
	}
	h := c.dataHeader()
	c.mu.Lock()
	defer c.mu.Unlock()
	was := len(c.out)
	c.out = grow(c.out, h+int(q.n))
	b := c.out[was:]
	if !c.quick.TryReadAt(b[h:], int64(q.off)) {
		c.out = c.out[:was]
		return false
	}
	c.putDataHeader(b, q)
	if len(c.out) >= outSoon {
		c.send()
	}
	return true
}

// emptyRead answers a read of no bytes, which has no data to carry in a chunk.
func (c *conn) emptyRead(q request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := len(c.out)
	if !c.structured {
		c.out = grow(c.out, simpleSize)
		putSimple(c.out[was:], 0, q.cookie)
		return
	}
	c.out = grow(c.out, chunkSize)
	putChunk(c.out[was:], chunkFlagDone, chunkNone, q.cookie, 0)
}

// slowRead serves a read that may wait for the disk, through p.
func (c *conn) slowRead(q request, p []byte) {
	defer c.release(p)
	if err := c.dev.ReadAt(p, int64(q.off)); err != nil {
		c.answer(q, err)
		c.flushSoon()
		return
	}
	h := c.dataHeader()
	c.mu.Lock()
	was := len(c.out)
	c.out = grow(c.out, h+len(p))
	c.putDataHeader(c.out[was:], q)
	copy(c.out[was+h:], p)
	if len(c.out) >= outSoon {
		c.send()
	}
	c.mu.Unlock()
	c.flushSoon()
}

// grow returns b, n bytes longer.
func grow(b []byte, n int) []byte {
	if len(b)+n <= cap(b) {
		return b[:len(b)+n]
	}
	nb := make([]byte, len(b)+n, max(2*cap(b), len(b)+n, 64<<10))
	copy(nb, b)
	return nb
}

// answer queues the reply to a request that returns no data.
func (c *conn) answer(q request, err error) {
	if err != nil {
		c.fail(q, errno(err), err.Error())
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := len(c.out)
	c.out = grow(c.out, simpleSize)
	putSimple(c.out[was:], 0, q.cookie)
	if len(c.out) >= outSoon {
		c.send()
	}
}

// fail queues an error reply. Only reads need a structured one.
func (c *conn) fail(q request, errno uint32, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := len(c.out)
	if !c.structured || q.cmd != cmdRead {
		c.out = grow(c.out, simpleSize)
		putSimple(c.out[was:], errno, q.cookie)
		return
	}
	text = text[:min(len(text), maxErrorText)]
	c.out = grow(c.out, chunkSize+6+len(text))
	b := c.out[was:]
	putChunk(b, chunkFlagDone, chunkError, q.cookie, uint32(6+len(text)))
	binary.BigEndian.PutUint32(b[chunkSize:], errno)
	binary.BigEndian.PutUint16(b[chunkSize+4:], uint16(len(text)))
	copy(b[chunkSize+6:], text)
}

// flush sends all replies, unless another goroutine is already sending.
func (c *conn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send()
	return c.failed
}

// flushSoon is flush after other workers had a chance to queue replies.
func (c *conn) flushSoon() {
	runtime.Gosched()
	c.flush()
}

// send sends all replies. It is called with mu held, which it releases while it
// writes. If another goroutine is sending and many replies are queued, it waits
// for that goroutine.
func (c *conn) send() {
	if c.sending {
		for c.sending && len(c.out) >= outSoon {
			c.cond.Wait()
		}
		return
	}
	c.sending = true
	for len(c.out) > 0 {
		b := c.out
		c.out = c.spare[:0]
		c.spare = nil
		failed := c.failed
		c.mu.Unlock()
		if failed == nil {
			_, failed = c.nc.Write(b)
		}
		c.mu.Lock()
		if failed != nil && c.failed == nil {
			// This ends the reader too: a client without replies is not served.
			c.failed = fmt.Errorf("send replies: %w", failed)
			c.nc.Close()
		}
		if cap(b) <= keepOut {
			c.spare = b
		}
	}
	c.sending = false
	c.cond.Broadcast()
}

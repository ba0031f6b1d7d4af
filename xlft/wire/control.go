package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// heartbeatsPerTimeout is how many heartbeats in a row must be missed before
// the other side is suspected.
const heartbeatsPerTimeout = 5

// Control is a session's control connection, from ACCEPT to its end, and the
// failure detector of both sides: the other side is suspected when nothing has
// come from it for the failure timeout, or when the connection breaks. Time in
// which this process itself stood still does not count: what came meanwhile is
// read first.
//
// Suspicion decides nothing. What a side may do about it, the arbiter says.
//
// One goroutine at a time may receive, while others send.
type Control struct {
	conn    *Conn
	in      *patient
	ahead   *bufio.Reader // reads from in
	silence time.Duration // the failure timeout
	read    *received     // by Latest, for Receive

	wmu sync.Mutex // one sender at a time
}

// NewControl takes over a connection whose session both sides have accepted.
// Silence is the failure timeout that was agreed.
func NewControl(c *Conn, silence time.Duration) *Control {
	c.SetDeadline(time.Time{})
	in := &patient{Conn: c.Conn, silence: silence, last: time.Now()}
	ahead := bufio.NewReader(in)
	c.in = ahead
	return &Control{conn: c, in: in, ahead: ahead, silence: silence}
}

// A patient reads from a connection. A read fails with a timeout if nothing came
// while this process was awake for the time of silence. A read that began within
// a frame goes on where it was.
type patient struct {
	net.Conn
	silence time.Duration

	last  time.Time // when something was last read
	late  bool      // that took so long that more may be here already
	brief bool      // the caller has set a deadline of its own
}

func (p *patient) Read(b []byte) (int, error) {
	if p.brief {
		return p.Conn.Read(b)
	}
	n, err := p.wait(b)
	now := time.Now()
	p.late = p.late || now.Sub(p.last) > p.silence/2 // a heartbeat comes in a fifth
	p.last = now
	return n, err
}

func (p *patient) wait(b []byte) (int, error) {
	end := bound(p.silence-lastLook, p.SetReadDeadline)
	n, err := p.Conn.Read(b)
	end()
	var ne net.Error
	if n == 0 && errors.As(err, &ne) && ne.Timeout() {
		// A deadline that is over comes before bytes that are there.
		p.SetReadDeadline(time.Now().Add(lastLook))
		n, err = p.Conn.Read(b)
		p.SetReadDeadline(time.Time{})
	}
	return n, err
}

// lastLook is for bytes that came with the end of the silence.
const lastLook = time.Millisecond

// Send sends a frame without a body, within the failure timeout.
func (c *Control) Send(t Type, epoch uint64) error {
	return c.send(func() error { return c.conn.WriteFrame(t, epoch, nil) })
}

// SendJSON sends a frame whose body is v as JSON, within the failure timeout.
func (c *Control) SendJSON(t Type, v any) error {
	return c.send(func() error { return c.conn.WriteJSON(t, 0, v) })
}

func (c *Control) send(write func() error) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	defer bound(c.silence, c.conn.SetWriteDeadline)()
	return write()
}

// Beat sends heartbeats, several in each failure timeout, until ctx ends, and
// then returns nil. An error means that one could not be sent.
func (c *Control) Beat(ctx context.Context) error {
	t := time.NewTicker(c.silence / heartbeatsPerTimeout)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := c.Send(TypeHeartbeat, 0); err != nil {
				return fmt.Errorf("send heartbeat: %w", err)
			}
		}
	}
}

// Receive returns the next frame that is no heartbeat. An error says why the
// other side is suspected: ErrSilent, or how the connection broke.
func (c *Control) Receive() (Frame, error) {
	if r := c.read; r != nil {
		c.read = nil
		return r.Frame, r.err
	}
	for {
		f, err := c.next()
		if err != nil || f.Type != TypeHeartbeat {
			return f, err
		}
	}
}

// Latest reports whether the frame that Receive returned is the peer's last word,
// as far as can be known here. A process that stood still may find itself with an
// ACK of long ago: the backup may have taken the domain over since, and what the ACK
// would let out has to stay here then. What came after the frame is returned by the
// next Receive.
//
// Latest reads: call it between two calls of Receive, and act on its answer at once.
func (c *Control) Latest() bool {
	if c.read != nil {
		return false
	}
	if !c.in.late && time.Since(c.in.last) <= c.silence/2 {
		return true
	}
	for c.waiting() {
		if f, err := c.next(); err != nil || f.Type != TypeHeartbeat {
			c.read = &received{f, err}
			return false
		}
	}
	return true
}

// received is what Latest found.
type received struct {
	Frame
	err error
}

func (c *Control) next() (Frame, error) {
	f, err := c.conn.ReadFrame()
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return Frame{}, fmt.Errorf("%w for %v", ErrSilent, c.silence)
	case err != nil:
		return Frame{}, fmt.Errorf("connection broke: %w", err)
	}
	return f, nil
}

// waiting reports whether more is here already: a frame, or the connection's end.
func (c *Control) waiting() bool {
	c.in.brief = true
	c.in.SetReadDeadline(time.Now().Add(lastLook))
	_, err := c.ahead.Peek(1)
	c.in.SetReadDeadline(time.Time{})
	c.in.brief = false
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		c.in.late, c.in.last = false, time.Now()
		return false
	}
	return true
}

// Address returns the address by which the other side was dialled, or is seen.
func (c *Control) Address() string {
	if t, ok := c.conn.Conn.(*tlsConn); ok && t.path != "" {
		return t.path
	}
	return c.conn.RemoteAddr().String()
}

// Close closes the connection; a blocked Receive returns.
func (c *Control) Close() error { return c.conn.Close() }

// ErrSilent is a peer from which nothing came for the failure timeout.
var ErrSilent = errors.New("silent")

package wire

import (
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
// One goroutine may call Receive while others send.
type Control struct {
	conn    *Conn
	silence time.Duration // the failure timeout

	wmu sync.Mutex // one sender at a time
}

// NewControl takes over a connection whose session both sides have accepted.
// Silence is the failure timeout that was agreed.
func NewControl(c *Conn, silence time.Duration) *Control {
	c.SetDeadline(time.Time{})
	c.in = &patient{c.Conn, silence}
	return &Control{conn: c, silence: silence}
}

// A patient reads from a connection. A read fails with a timeout if nothing came
// while this process was awake for the time of silence. A read that began within
// a frame goes on where it was.
type patient struct {
	net.Conn
	silence time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
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
	for {
		f, err := c.conn.ReadFrame()
		var ne net.Error
		switch {
		case errors.As(err, &ne) && ne.Timeout():
			return Frame{}, fmt.Errorf("%w for %v", ErrSilent, c.silence)
		case err != nil:
			return Frame{}, fmt.Errorf("connection broke: %w", err)
		case f.Type != TypeHeartbeat:
			return f, nil
		}
	}
}

// Close closes the connection; a blocked Receive returns.
func (c *Control) Close() error { return c.conn.Close() }

// ErrSilent is a peer from which nothing came for the failure timeout.
var ErrSilent = errors.New("silent")

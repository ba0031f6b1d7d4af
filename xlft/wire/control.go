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
// come from it for the failure timeout, or when the connection breaks.
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
	return &Control{conn: c, silence: silence}
}

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
	c.conn.SetWriteDeadline(time.Now().Add(c.silence))
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
		c.conn.SetReadDeadline(time.Now().Add(c.silence))
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

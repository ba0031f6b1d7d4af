//go:build lab

package scenario

import (
	"fmt"
	"time"

	"xlft/tests/lab/probe"
)

// A caller is a client of a guest: it asks one question after the other, each so long after the last, over one
// connection.
type caller struct {
	fx     *fixture
	client *probe.Client
	start  probe.State
	stream *probe.Stream
}

func (fx *fixture) call(every time.Duration) *caller {
	fx.t.Helper()
	c := &caller{fx: fx, client: fx.dial(), start: fx.get()}
	check(fx.t, c.client.SetDeadline(time.Time{}))
	c.stream = c.client.Paced(0, 1, every)
	return c
}

// await waits until the client has so many more replies.
func (c *caller) await(more uint64) {
	c.fx.t.Helper()
	_, before, _ := c.stream.Counts()
	c.fx.until(patience, func() error {
		_, n, err := c.stream.Counts()
		if err != nil {
			c.fx.t.Fatalf("the client of %s: %v", c.fx.guest.Name, err)
		}
		if n < before+more {
			return fmt.Errorf("the client of %s has %d replies, of %d", c.fx.guest.Name, n, before+more)
		}
		return nil
	})
}

// end ends it, and judges what the client was told.
func (c *caller) end() []probe.Reply {
	c.fx.t.Helper()
	replies, err := c.stream.Stop(patience)
	if err != nil {
		c.fx.t.Errorf("the client of %s: %v", c.fx.guest.Name, err)
	}
	c.client.Close()
	c.fx.judge(c.start, replies)
	c.fx.t.Logf("the client of %s waited %v at most", c.fx.guest.Name, round(probe.LongestGap(replies)))
	return replies
}

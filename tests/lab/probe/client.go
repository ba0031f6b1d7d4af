package probe

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// ErrRefused means that the guest answered a command with an error.
var ErrRefused = errors.New("refused by the guest")

// A State is what the guest's service answers: how many numbers it took, and their checksum.
type State struct{ Count, Sum uint64 }

// A Client is one connection to the guest's service. It is for one goroutine.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
}

// NewClient returns a client over conn, which then belongs to it.
func NewClient(conn net.Conn) *Client { return &Client{conn, bufio.NewReader(conn)} }

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// SetDeadline bounds all further exchanges.
func (c *Client) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// Add sends n and returns the guest's state after it.
func (c *Client) Add(n uint64) (State, error) { return c.state("add %d", n) }

// Get returns the guest's state.
func (c *Client) Get() (State, error) { return c.state("get") }

// Dirty makes the guest write to pages of a working set, so many a second.
func (c *Client) Dirty(perSecond, workingSet int) error {
	_, err := c.do("dirty %d %d", perSecond, workingSet)
	return err
}

// Chatter makes the guest send a probe of each kind so many times a second; 0 stops it.
func (c *Client) Chatter(perSecond int) error {
	_, err := c.do("chatter %d", perSecond)
	return err
}

// Chattered returns the number of the last probe that the guest sent, and of the first that it sent after its network
// device last got its carrier: after a move, the first that it sent at the new host.
func (c *Client) Chattered() (last, since uint64, err error) {
	line, err := c.do("chattered")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(line, &last, &since); err != nil {
		return 0, 0, fmt.Errorf("probe: chattered: answer %q: %w", line, err)
	}
	return last, since, nil
}

// Stall returns the longest time for which the guest stood still since the last call, by the guest's own clock. The
// first call starts the measurement.
func (c *Client) Stall() (time.Duration, error) {
	line, err := c.do("stall")
	if err != nil {
		return 0, err
	}
	var us int64
	if _, err := fmt.Sscan(line, &us); err != nil {
		return 0, fmt.Errorf("probe: stall: answer %q: %w", line, err)
	}
	return time.Duration(us) * time.Microsecond, nil
}

// WriteBlock writes n to a 4 KiB block of the guest's first disk. It returns when the disk has acknowledged the write
// as durable.
func (c *Client) WriteBlock(block int64, n uint64) error {
	_, err := c.do("write %d %d", block, n)
	return err
}

// ReadBlock returns the number in a block of the guest's first disk, read from the disk and not from a cache.
func (c *Client) ReadBlock(block int64) (uint64, error) {
	line, err := c.do("read %d", block)
	if err != nil {
		return 0, err
	}
	var n uint64
	if _, err := fmt.Sscan(line, &n); err != nil {
		return 0, fmt.Errorf("probe: read block %d: answer %q: %w", block, line, err)
	}
	return n, nil
}

// Bulk makes the guest send as much as it can. It returns how many bytes arrived in the time d after the time warm, in
// which the connection finds its rate. It uses the connection up.
func (c *Client) Bulk(warm, d time.Duration) (n int64, err error) {
	defer c.Close()
	if _, err := c.conn.Write([]byte("bulk\n")); err != nil {
		return 0, fmt.Errorf("probe: bulk: %w", err)
	}
	for _, d := range []time.Duration{warm, d} {
		if err := c.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
			return 0, fmt.Errorf("probe: bulk: %w", err)
		}
		n, err = io.Copy(io.Discard, c.r)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, fmt.Errorf("probe: bulk: the guest ended it: %w", err)
		}
	}
	return n, nil
}

// Sink makes the guest take whatever is written to the connection, which is the caller's from now on.
func (c *Client) Sink() (io.WriteCloser, error) {
	if _, err := c.conn.Write([]byte("sink\n")); err != nil {
		return nil, fmt.Errorf("probe: sink: %w", err)
	}
	return c.conn, nil
}

// Sunk returns how many bytes the guest took by Sink, and its clock then.
func (c *Client) Sunk() (n int64, at time.Duration, err error) {
	line, err := c.do("sunk")
	if err != nil {
		return 0, 0, err
	}
	var us int64
	if _, err := fmt.Sscan(line, &n, &us); err != nil {
		return 0, 0, fmt.Errorf("probe: sunk: answer %q: %w", line, err)
	}
	return n, time.Duration(us) * time.Microsecond, nil
}

// Spin makes the guest ask for the time, again and again, for so long. It returns how often the guest did.
func (c *Client) Spin(d time.Duration) (n int64, err error) {
	line, err := c.do("spin %d", d.Milliseconds())
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(line, &n); err != nil {
		return 0, fmt.Errorf("probe: spin: answer %q: %w", line, err)
	}
	return n, nil
}

// MovingPage is the size of the pages that Moving asks for, in bytes.
const MovingPage = 4096

// Moving makes the guest send n pages, at such intervals, of a file that it goes on writing. It returns, for each page,
// for how many milliseconds of the guest's own time the guest went on writing the page after it was sent: the age of the
// youngest word in it. It uses the connection up.
func (c *Client) Moving(n int, every time.Duration) (ages []uint64, err error) {
	defer c.Close()
	if _, err := fmt.Fprintf(c.conn, "moving %d %d\n", n, every.Milliseconds()); err != nil {
		return nil, fmt.Errorf("probe: moving: %w", err)
	}
	page := make([]byte, 8+MovingPage)
	for range n {
		if _, err := io.ReadFull(c.r, page); err != nil {
			return ages, fmt.Errorf("probe: moving: after %d pages: %w", len(ages), err)
		}
		sent, newest := binary.BigEndian.Uint64(page), uint64(0)
		for at := 8; at < len(page); at += 8 {
			newest = max(newest, binary.BigEndian.Uint64(page[at:]))
		}
		ages = append(ages, newest-min(sent, newest))
	}
	return ages, nil
}

func (c *Client) state(format string, args ...any) (State, error) {
	line, err := c.do(format, args...)
	if err != nil {
		return State{}, err
	}
	var s State
	if _, err := fmt.Sscan(line, &s.Count, &s.Sum); err != nil {
		return State{}, fmt.Errorf("probe: answer %q: %w", line, err)
	}
	return s, nil
}

func (c *Client) do(format string, args ...any) (string, error) {
	cmd := fmt.Sprintf(format, args...)
	if _, err := c.conn.Write([]byte(cmd + "\n")); err != nil {
		return "", fmt.Errorf("probe: send %q: %w", cmd, err)
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("probe: answer to %q: %w", cmd, err)
	}
	line = strings.TrimSuffix(line, "\n")
	if why, ok := strings.CutPrefix(line, "error: "); ok {
		return "", fmt.Errorf("probe: %s: %w: %s", cmd, ErrRefused, why)
	}
	return line, nil
}

package simxen

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"xlft/xlft/wire"
)

// Net connects the hosts. A connection has a delay and a buffer; it stalls when the network is cut and goes on when the
// network is mended, as with TCP.
type Net struct {
	Delay time.Duration

	mu        sync.Mutex
	cut       bool
	silent    map[string]bool    // hosts without power
	mute      map[string]bool    // hosts that receive, and whose bytes do not arrive
	pairs     map[[2]string]bool // between these nothing passes
	listeners map[string]*Listener
	conns     []*Conn
	flip      bool  // damage a bit of the next large write
	tear      int64 // bytes after which the next connection breaks; 0: never
}

// NewNet returns a network without faults.
func NewNet(delay time.Duration) *Net {
	return &Net{Delay: delay, silent: map[string]bool{}, mute: map[string]bool{}, pairs: map[[2]string]bool{}, listeners: map[string]*Listener{}}
}

// Cut stops all traffic between the hosts, or lets it go on.
func (n *Net) Cut(cut bool) {
	n.change(func() { n.cut = cut })
}

// CutPair stops all traffic between two hosts, or lets it go on.
func (n *Net) CutPair(a, b string, cut bool) {
	n.change(func() { n.pairs[[2]string{a, b}], n.pairs[[2]string{b, a}] = cut, cut })
}

// Mute stops the traffic from a host, or lets it go on. Traffic to the host arrives.
func (n *Net) Mute(host string, on bool) {
	n.change(func() { n.mute[host] = on })
}

// Mend ends all faults but lost power. A connection that TearAfter was to break later breaks now, so that xlft has the
// rest of the test to recover.
func (n *Net) Mend() {
	var torn []*Conn
	n.change(func() {
		n.cut, n.flip, n.tear = false, false, 0
		clear(n.mute)
		clear(n.pairs)
		for _, c := range n.conns {
			if c.tear > 0 {
				torn = append(torn, c)
			}
		}
	})
	for _, c := range torn {
		c.abort()
	}
}

func (n *Net) change(f func()) {
	n.mu.Lock()
	f()
	conns := n.conns
	n.mu.Unlock()
	for _, c := range conns {
		c.wake()
	}
}

func (n *Net) silence(host string) {
	n.mu.Lock()
	n.silent[host] = true
	delete(n.listeners, host)
	n.mu.Unlock()
}

// awaken gives a host its voice back. Connections of before are unknown there.
func (n *Net) awaken(host string) {
	n.mu.Lock()
	delete(n.silent, host)
	var old []*Conn
	n.conns = slices.DeleteFunc(n.conns, func(c *Conn) bool {
		its := c.in.from == host || c.out.from == host
		if its {
			old = append(old, c)
		}
		return its
	})
	n.mu.Unlock()
	for _, c := range old {
		c.abort()
	}
}

// TearAfter breaks the next connection that is opened, after its opener has written so many bytes.
func (n *Net) TearAfter(bytes int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tear = bytes
}

// FlipNext flips one bit of the next large write on any connection, as a network without encryption might.
func (n *Net) FlipNext() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flip = true
}

func (n *Net) flips(b []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.flip || len(b) < PageSize {
		return false
	}
	n.flip = false
	return true
}

// passes reports whether bytes get from a host to another now.
func (n *Net) passes(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut && !n.mute[from] && !n.silent[from] && !n.silent[to] && !n.pairs[[2]string{from, to}]
}

// Dial returns a dialer from the process to another host's listener.
func (p *Process) Dial(host string) wire.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		n := p.h.net
		if p.Dead() {
			return nil, errDead
		}
		if !n.passes(p.h.Name, host) {
			// Nobody answers.
			select {
			case <-time.After(dialPatience):
				return nil, syscall.ETIMEDOUT
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		n.mu.Lock()
		l := n.listeners[host]
		tear := n.tear
		n.tear = 0
		n.mu.Unlock()
		if l == nil {
			return nil, syscall.ECONNREFUSED
		}
		ours, theirs := n.pair(p.h.Name, host, tear)
		p.own(ours)
		select {
		case l.backlog <- theirs:
			return ours, nil
		case <-l.closed:
			return nil, syscall.ECONNREFUSED
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// dialPatience is how long a connection attempt takes that nobody answers.
const dialPatience = 500 * time.Millisecond

// A Listener accepts a host's incoming connections.
type Listener struct {
	p       *Process
	backlog chan *Conn
	closed  chan struct{}
	once    sync.Once
}

// Listen returns the host's listener, which belongs to the process.
func (p *Process) Listen() *Listener {
	l := &Listener{p: p, backlog: make(chan *Conn), closed: make(chan struct{})}
	p.h.net.mu.Lock()
	p.h.net.listeners[p.h.Name] = l
	p.h.net.mu.Unlock()
	return l
}

func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.backlog:
		l.p.own(c)
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *Listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		n := l.p.h.net
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.listeners[l.p.h.Name] == l {
			delete(n.listeners, l.p.h.Name)
		}
	})
	return nil
}

func (l *Listener) Addr() net.Addr { return addr(l.p.h.Name) }

type addr string

func (a addr) Network() string { return "sim" }
func (a addr) String() string  { return string(a) }

// stream is one direction of a connection.
type stream struct {
	from, to string
	mu       sync.Mutex
	cond     *sync.Cond
	parts    []part
	size     int
	fin      bool // no more will come
	finAt    time.Time
	reset    bool
	deadR    time.Time
	deadW    time.Time
	gone     bool // the reader has closed its end
}

type part struct {
	at time.Time
	b  []byte
}

// buffered is how many bytes a stream buffers before a writer waits.
const buffered = 256 << 10

// Conn is one end of a connection.
type Conn struct {
	n       *Net
	in, out *stream
	tear    int64
	wrote   int64
}

func (n *Net) pair(a, b string, tear int64) (*Conn, *Conn) {
	ab, ba := &stream{from: a, to: b}, &stream{from: b, to: a}
	ab.cond, ba.cond = sync.NewCond(&ab.mu), sync.NewCond(&ba.mu)
	x, y := &Conn{n: n, in: ba, out: ab, tear: tear}, &Conn{n: n, in: ab, out: ba}
	n.mu.Lock()
	n.conns = append(n.conns, x, y)
	n.mu.Unlock()
	return x, y
}

func (c *Conn) wake() {
	for _, s := range []*stream{c.in, c.out} {
		s.mu.Lock()
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}

// wakeAt wakes the stream's waiters at a time.
func (s *stream) wakeAt(at time.Time) *time.Timer {
	return time.AfterFunc(time.Until(at), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
}

func (c *Conn) Read(b []byte) (int, error) {
	s := c.in
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.gone {
			return 0, net.ErrClosed
		}
		if s.reset {
			return 0, syscall.ECONNRESET
		}
		now := time.Now()
		var next time.Time
		if c.n.passes(s.from, s.to) {
			if len(s.parts) > 0 {
				if p := &s.parts[0]; !p.at.After(now) {
					n := copy(b, p.b)
					p.b = p.b[n:]
					s.size -= n
					if len(p.b) == 0 {
						s.parts = s.parts[1:]
					}
					s.cond.Broadcast()
					return n, nil
				}
				next = s.parts[0].at
			} else if s.fin {
				if !s.finAt.After(now) {
					return 0, io.EOF
				}
				next = s.finAt
			}
		}
		if !s.deadR.IsZero() {
			if !s.deadR.After(now) {
				return 0, os.ErrDeadlineExceeded
			}
			if next.IsZero() || s.deadR.Before(next) {
				next = s.deadR
			}
		}
		if next.IsZero() {
			s.cond.Wait()
			continue
		}
		t := s.wakeAt(next)
		s.cond.Wait()
		t.Stop()
	}
}

func (c *Conn) Write(b []byte) (int, error) {
	if c.tear > 0 {
		if c.wrote += int64(len(b)); c.wrote >= c.tear {
			c.abort()
			return 0, syscall.ECONNRESET
		}
	}
	if c.n.flips(b) {
		b = append([]byte(nil), b...)
		b[len(b)/2] ^= 4
	}
	s := c.out
	s.mu.Lock()
	defer s.mu.Unlock()
	done := 0
	for done < len(b) {
		switch {
		case s.fin:
			return done, net.ErrClosed
		case s.reset, s.gone && c.n.passes(s.from, s.to) && c.n.passes(s.to, s.from): // a host without power sends no reset
			return done, syscall.EPIPE
		case !s.deadW.IsZero() && !s.deadW.After(time.Now()):
			return done, os.ErrDeadlineExceeded
		}
		if room := buffered - s.size; room > 0 {
			n := min(room, len(b)-done)
			s.parts = append(s.parts, part{time.Now().Add(c.n.Delay), append([]byte(nil), b[done:done+n]...)})
			s.size += n
			done += n
			s.cond.Broadcast()
			continue
		}
		if s.deadW.IsZero() {
			s.cond.Wait()
			continue
		}
		t := s.wakeAt(s.deadW)
		s.cond.Wait()
		t.Stop()
	}
	return done, nil
}

// Close ends both directions in order: bytes written before still arrive.
func (c *Conn) Close() error {
	c.out.mu.Lock()
	c.out.fin, c.out.finAt = true, time.Now().Add(c.n.Delay)
	c.out.cond.Broadcast()
	c.out.mu.Unlock()
	c.in.mu.Lock()
	c.in.gone = true
	c.in.cond.Broadcast()
	c.in.mu.Unlock()
	return nil
}

// abort resets the connection, as the kernel does when a process is killed: the other side is told.
func (c *Conn) abort() {
	for _, s := range []*stream{c.out, c.in} {
		s.mu.Lock()
		s.reset = true
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}

// unblock ends the calls that wait on this end. The other side is not told.
func (c *Conn) unblock() {
	c.in.mu.Lock()
	c.in.gone = true
	c.in.cond.Broadcast()
	c.in.mu.Unlock()
	c.out.mu.Lock()
	c.out.fin, c.out.finAt = true, time.Now().Add(1000*time.Hour) // never seen
	c.out.cond.Broadcast()
	c.out.mu.Unlock()
}

func (c *Conn) LocalAddr() net.Addr  { return addr(c.out.from) }
func (c *Conn) RemoteAddr() net.Addr { return addr(c.out.to) }

// From returns the host at the other end.
func (c *Conn) From() string { return c.out.to }

func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.deadR = t
	c.in.cond.Broadcast()
	return nil
}

func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.deadW = t
	c.out.cond.Broadcast()
	return nil
}

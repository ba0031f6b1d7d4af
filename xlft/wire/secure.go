package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
)

// batchSize is what goes to the kernel, or comes from it, in one call. TLS has
// records of 16 KiB, and crypto/tls makes a call for each.
const batchSize = 256 << 10

// A SecureConn is a TLS connection that batches its system calls: one for each
// Write of the user, and few for what comes.
type SecureConn struct {
	*tls.Conn
	under *batcher

	wmu   sync.Mutex
	shook sync.Once
	err   error // of the handshake
}

// Dial opens a TLS connection, with its handshake done.
func Dial(ctx context.Context, d *net.Dialer, address string, conf *tls.Config) (*SecureConn, error) {
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := secure(raw, conf, tls.Client)
	// The handshake has the dial's patience.
	if d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.Timeout)
		defer cancel()
	}
	c.shook.Do(func() { c.handshake(ctx) })
	if c.err != nil {
		raw.Close()
		return nil, c.err
	}
	return c, nil
}

// NewListener gives connections that shake hands when they are first used.
func NewListener(l net.Listener, conf *tls.Config) net.Listener { return &listener{l, conf} }

type listener struct {
	net.Listener
	conf *tls.Config
}

func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return secure(raw, l.conf, tls.Server), nil
}

func secure(raw net.Conn, conf *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn) *SecureConn {
	b := &batcher{Conn: raw}
	return &SecureConn{Conn: side(b, conf), under: b}
}

func (c *SecureConn) handshake(ctx context.Context) {
	if c.err = c.Conn.HandshakeContext(ctx); c.err == nil {
		c.under.r = bufio.NewReaderSize(c.under.Conn, batchSize)
		c.under.w = bufio.NewWriterSize(c.under.Conn, batchSize)
		c.under.on.Store(true)
	}
}

func (c *SecureConn) ready() error {
	c.shook.Do(func() { c.handshake(context.Background()) }) // a deadline of the connection bounds it
	return c.err
}

func (c *SecureConn) Read(b []byte) (int, error) {
	if err := c.ready(); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *SecureConn) Write(b []byte) (int, error) {
	if err := c.writeAll(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// writeAll sends several pieces as one Write.
func (c *SecureConn) writeAll(bs ...[]byte) error {
	if err := c.ready(); err != nil {
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for _, b := range bs {
		if _, err := c.Conn.Write(b); err != nil {
			return err
		}
	}
	return c.under.flush()
}

// A batcher is the connection below TLS. While it is off it passes everything
// on at once, which a handshake needs.
type batcher struct {
	net.Conn
	on atomic.Bool
	r  *bufio.Reader

	mu sync.Mutex
	w  *bufio.Writer
}

func (b *batcher) Read(p []byte) (int, error) {
	if !b.on.Load() {
		return b.Conn.Read(p)
	}
	return b.r.Read(p)
}

func (b *batcher) Write(p []byte) (int, error) {
	if !b.on.Load() {
		return b.Conn.Write(p)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Write(p)
}

func (b *batcher) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Flush()
}

// Close sends what is left, TLS's farewell, unless somebody is at it and may
// be blocked.
func (b *batcher) Close() error {
	if b.on.Load() && b.mu.TryLock() {
		b.w.Flush()
		b.mu.Unlock()
	}
	return b.Conn.Close()
}

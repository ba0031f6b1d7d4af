package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// batchSize is what goes to the kernel, or comes from it, in one call. TLS has
// records of 16 KiB, and crypto/tls makes a call for each.
const batchSize = 256 << 10

// A tlsConn is a TLS connection that batches its system calls: one for each
// Write, and few for many small reads.
type tlsConn struct {
	*tls.Conn
	under *bufferedConn
	path  string // the address that was dialled; "" if it was accepted

	wmu           sync.Mutex
	small         []byte // a frame with little in it
	handshakeOnce sync.Once
	err           error // of the handshake
}

// dialTimeout bounds one attempt to reach a peer, and the handshake after it.
const dialTimeout = 10 * time.Second

// attemptDelay is how long an address is tried before the next one is tried beside it
// (RFC 8305 section 8, Connection Attempt Delay).
const attemptDelay = 250 * time.Millisecond

// Dialer returns what opens TLS connections to the peer that has this fingerprint, with
// their handshake done, at the first of its addresses ("host:port") that answers. The
// addresses are tried in their order: each gets a moment before the next one is tried too.
// The error is that of all.
func (id *Identity) Dialer(addresses []string, peer Fingerprint) Dialer {
	conf := id.TLSConfig(func(f Fingerprint) bool { return f == peer })
	return func(ctx context.Context) (net.Conn, error) {
		return race(ctx, path(ctx, addresses), func(ctx context.Context, address string) (net.Conn, error) {
			c, err := dialTLS(ctx, address, conf)
			if err != nil {
				return nil, err
			}
			c.path = address
			return c, nil
		})
	}
}

type pathKey struct{}

// By returns a context in which a Dialer takes this address of the peer alone: all
// connections of a session go by one path, whose end its heartbeats find out. "" is any.
func By(ctx context.Context, address string) context.Context {
	return context.WithValue(ctx, pathKey{}, address)
}

// Path returns the address that a context has by By; "" if none.
func Path(ctx context.Context) string {
	address, _ := ctx.Value(pathKey{}).(string)
	return address
}

// path returns the addresses that are to be tried.
func path(ctx context.Context, addresses []string) []string {
	if one := Path(ctx); slices.Contains(addresses, one) {
		return []string{one}
	}
	return addresses
}

// race returns the first connection that stands, and closes those that come later.
func race(ctx context.Context, addresses []string, dial func(ctx context.Context, address string) (net.Conn, error)) (net.Conn, error) {
	if len(addresses) == 1 {
		return dial(ctx, addresses[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		net.Conn
		err error
	}
	results := make(chan result)
	begun, ended := 0, 0
	defer func() {
		cancel() // whoever is still at it gives up
		go func() {
			for ; ended < begun; ended++ {
				if r := <-results; r.err == nil {
					r.Close()
				}
			}
		}()
	}()
	next := time.NewTimer(0)
	defer next.Stop()
	errs := make([]error, len(addresses))
	for ended < len(addresses) {
		select {
		case <-next.C:
			if begun == len(addresses) {
				continue
			}
			at := begun
			begun++
			go func() {
				c, err := dial(ctx, addresses[at])
				errs[at] = err
				results <- result{c, err}
			}()
			next.Reset(attemptDelay)
		case r := <-results:
			ended++
			if r.err == nil {
				return r.Conn, nil
			}
			next.Reset(0)
		}
	}
	return nil, errors.Join(errs...)
}

func dialTLS(ctx context.Context, address string, conf *tls.Config) (*tlsConn, error) {
	raw, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := secure(raw, conf, tls.Client)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c.handshakeOnce.Do(func() { c.handshake(ctx) })
	if c.err != nil {
		raw.Close()
		return nil, c.err
	}
	return c, nil
}

// PeerOf returns the fingerprint of the peer behind a connection that a listener
// of NewListener accepted, once the handshake is done.
func PeerOf(c net.Conn) (f Fingerprint, ok bool) {
	tc, ok := c.(*tlsConn)
	if !ok || len(tc.ConnectionState().PeerCertificates) == 0 {
		return f, false
	}
	return peerFingerprint(tc.ConnectionState()), true
}

// NewListener gives TLS connections that shake hands when they are first used.
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

func secure(raw net.Conn, conf *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn) *tlsConn {
	b := &bufferedConn{Conn: raw}
	return &tlsConn{Conn: side(b, conf), under: b}
}

func (c *tlsConn) handshake(ctx context.Context) {
	if c.err = c.Conn.HandshakeContext(ctx); c.err == nil {
		c.under.r = bufio.NewReaderSize(c.under.Conn, batchSize)
		c.under.w = bufio.NewWriterSize(c.under.Conn, batchSize)
		c.under.on.Store(true)
	}
}

func (c *tlsConn) ready() error {
	c.handshakeOnce.Do(func() { c.handshake(context.Background()) }) // a deadline of the connection bounds it
	return c.err
}

func (c *tlsConn) Read(b []byte) (int, error) {
	if err := c.ready(); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *tlsConn) Write(b []byte) (int, error) {
	if err := c.writeAll(false, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// writeAll sends a head and a body as one Write; more: they may wait for the next one.
// Small ones share a record.
func (c *tlsConn) writeAll(more bool, bs ...[]byte) error {
	if err := c.ready(); err != nil {
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if n := len(bs); n > 1 && len(bs[n-1]) < smallBody {
		c.small = append(append(c.small[:0], bs[0]...), bs[1]...)
		bs = [][]byte{c.small}
	}
	for _, b := range bs {
		if _, err := c.Conn.Write(b); err != nil {
			return err
		}
	}
	if more {
		return nil
	}
	return c.under.flush()
}

// smallBody is below what a TLS record holds.
const smallBody = 8 << 10

// A bufferedConn is the connection below TLS. While it is off it buffers nothing,
// which a handshake needs.
type bufferedConn struct {
	net.Conn
	on atomic.Bool
	r  *bufio.Reader

	mu sync.Mutex
	w  *bufio.Writer
}

func (b *bufferedConn) Read(p []byte) (int, error) {
	if !b.on.Load() {
		return b.Conn.Read(p)
	}
	return b.r.Read(p)
}

func (b *bufferedConn) Write(p []byte) (int, error) {
	if !b.on.Load() {
		return b.Conn.Write(p)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Write(p)
}

func (b *bufferedConn) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Flush()
}

// Close sends what is left, TLS's close_notify, unless another goroutine is
// already sending and may be blocked.
func (b *bufferedConn) Close() error {
	if b.on.Load() && b.mu.TryLock() {
		b.w.Flush()
		b.mu.Unlock()
	}
	return b.Conn.Close()
}

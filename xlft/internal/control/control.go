// Package control is how the commands talk to the running daemons of the same
// host: HTTP with JSON on a unix socket per daemon.
//
// The one rule a caller must know: whoever may open the socket may do
// everything, so the socket is root's (mode 0600).
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"xlft/xlft"
)

// Socket returns the path of a daemon's socket; name is a domain's, or
// Receiver.
func Socket(dir, name string) string { return filepath.Join(dir, xlft.FileName(name)+".sock") }

// Receiver names the receiver's socket. No domain has that name: Xen allows
// no "/" in one.
const Receiver = "/receiver"

// Names returns the domains whose sockets are in dir.
func Names(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range es {
		if n, ok := strings.CutSuffix(e.Name(), ".sock"); ok {
			if n, ok := xlft.NameOf(n); ok && n != Receiver {
				names = append(names, n)
			}
		}
	}
	return names, nil
}

// Listen opens a daemon's socket. A stale one is replaced; a live one is an
// error.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("open control socket: %s is in use", path)
	}
	os.Remove(path)
	// With this mask the socket is root's from the moment it exists.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	return l, nil
}

// Handle registers f at pattern ("POST /stop"). What f returns is the answer;
// its error is answered too.
func Handle(mux *http.ServeMux, pattern string, f func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			status := http.StatusConflict
			if errors.Is(err, ErrEnding) {
				status = http.StatusGone
			}
			w.WriteHeader(status)
			v = failure{err.Error()}
		}
		json.NewEncoder(w).Encode(v)
	})
}

type failure struct {
	Error string `json:"error"`
}

// ErrEnding is the answer of a daemon that has ended its work and is about to
// exit. The client gets ErrDown.
var ErrEnding = errors.New("about to end")

// ErrDown: no daemon listens there, or one that is about to end.
var ErrDown = errors.New("not running")

// A Client asks one daemon, again and again over the same connection.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client of the daemon behind the socket at path.
func NewClient(path string) *Client {
	return &Client{path, &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}}
}

// Forget closes connections that are not in use: the daemon may be another one.
func (c *Client) Forget() { c.http.CloseIdleConnections() }

// Open sends a request, with in as JSON unless it is nil, and returns the body of
// the answer as it arrives. The caller reads it to its end, or cancels ctx, and
// closes it.
func (c *Client) Open(ctx context.Context, method, what string, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://xlft"+what, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, ErrDown
		}
		return nil, fmt.Errorf("ask the daemon at %s: %w", c.path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var f failure
	if json.NewDecoder(resp.Body).Decode(&f) != nil || f.Error == "" {
		f.Error = resp.Status
	}
	if resp.StatusCode == http.StatusGone {
		return nil, fmt.Errorf("%w: %s", ErrDown, f.Error)
	}
	return nil, errors.New(f.Error)
}

// Call sends a request and decodes the answer into out, unless out is nil.
func (c *Client) Call(ctx context.Context, method, what string, in, out any) error {
	body, err := c.Open(ctx, method, what, in)
	if err != nil {
		return err
	}
	defer body.Close()
	defer io.Copy(io.Discard, body) // so that the connection can be used again
	if out == nil {
		return nil
	}
	return json.NewDecoder(body).Decode(out)
}

// Call sends one request to the daemon behind the socket at path.
func Call(ctx context.Context, path, method, what string, in, out any) error {
	c := NewClient(path)
	defer c.Forget()
	return c.Call(ctx, method, what, in, out)
}

package diskserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"

	"xlft/xlft"
	"xlft/xlft/internal/control"
	"xlft/xlft/wire"
)

// CommandSocket is where the server of a domain's disks takes commands.
func CommandSocket(runDir, domain string) string {
	return control.Socket(filepath.Join(runDir, "disk"), domain)
}

// ClientSocket is where it serves NBD clients; the exports are named after the
// virtual devices.
func ClientSocket(runDir, domain string) string {
	return control.Socket(filepath.Join(runDir, "nbd"), domain)
}

// A Client asks a domain's disk server. It is xlft.Disks too.
type Client struct {
	path  string
	order Order
	http  *http.Client // keeps its connection: a seal is made while the domain stands still

	mu     sync.Mutex
	last   Report
	cancel context.CancelFunc
}

// NewClient returns a client of the server behind a command socket, for the
// replication of disks to a peer.
func NewClient(path, peer string, disks []wire.Disk) *Client {
	return &Client{path: path, order: Order{Peer: peer, Disks: disks}, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}}
}

func (c *Client) post(ctx context.Context, what string, body any) (*http.Response, error) {
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://xlft"+what, &b)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the disk server at %s: %w", c.path, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		var f struct {
			Error string `json:"error"`
		}
		if json.NewDecoder(resp.Body).Decode(&f) != nil || f.Error == "" {
			f.Error = resp.Status
		}
		return nil, errors.New(f.Error)
	}
	return resp, nil
}

func (c *Client) do(what string) error {
	resp, err := c.post(context.Background(), what, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body) // so that the connection can be used again
	return err
}

// Replicate is xlft.Disks'.
func (c *Client) Replicate(ctx context.Context, id string, lost func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	c.cancel = cancel
	c.last = Report{}
	c.mu.Unlock()
	o := c.order
	o.Session = id
	resp, err := c.post(ctx, "/replicate", o)
	if err != nil {
		cancel()
		return err
	}
	dec := json.NewDecoder(resp.Body)
	for {
		r, err := c.next(dec)
		if err != nil {
			cancel()
			resp.Body.Close()
			return err
		}
		if synced(r, len(o.Disks)) {
			break
		}
	}
	go func() {
		defer cancel()
		defer resp.Body.Close()
		for {
			if _, err := c.next(dec); err != nil {
				if ctx.Err() == nil {
					lost(err)
				}
				return
			}
		}
	}()
	return nil
}

func (c *Client) next(dec *json.Decoder) (Report, error) {
	var r Report
	if err := dec.Decode(&r); err != nil {
		return r, fmt.Errorf("the disk server ended: %w", err)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	c.mu.Lock()
	c.last = r
	c.mu.Unlock()
	return r, nil
}

func synced(r Report, want int) bool {
	for _, d := range r.Disks {
		if !d.Synced {
			return false
		}
	}
	return len(r.Disks) == want
}

// End is xlft.Disks'.
func (c *Client) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}

// Progress is xlft.Disks'.
func (c *Client) Progress() []xlft.DiskProgress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.Disks
}

// Held returns how much of the backup's fullest journal is used, of how much.
func (c *Client) Held() (held, limit int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.Held, c.last.Limit
}

// Seal ends an epoch of all disks.
func (c *Client) Seal(epoch uint64) error { return c.do(fmt.Sprintf("/seal/%d", epoch)) }

// Release says that the backup has acked an epoch.
func (c *Client) Release(epoch uint64) error { return c.do(fmt.Sprintf("/release/%d", epoch)) }

// Attach makes a disk a block device of this host.
func (c *Client) Attach(ctx context.Context, vdev string) (device string, err error) {
	err = control.Call(ctx, c.path, http.MethodPost, "/attach/"+vdev, nil, &device)
	return device, err
}

// Open serves a disk on the client socket alone.
func (c *Client) Open(ctx context.Context, vdev string) error {
	return control.Call(ctx, c.path, http.MethodPost, "/open/"+vdev, nil, nil)
}

// Detach undoes that.
func (c *Client) Detach(ctx context.Context, vdev string) error {
	return control.Call(ctx, c.path, http.MethodPost, "/detach/"+vdev, nil, nil)
}

// Status returns the open disks.
func (c *Client) Status(ctx context.Context) (st []DiskStatus, err error) {
	err = control.Call(ctx, c.path, http.MethodGet, "/status", nil, &st)
	return st, err
}

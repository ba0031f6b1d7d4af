package diskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"xlft/xlft"
	"xlft/xlft/internal/control"

	"xlft/xlft/wire"
)

// CommandSocket returns where the server of a domain's disks takes commands.
func CommandSocket(runDir, domain string) string {
	return control.Socket(filepath.Join(runDir, "disk"), domain)
}

// ClientSocket returns where the server of a domain's disks serves NBD clients.
// The exports are named after the virtual devices.
func ClientSocket(runDir, domain string) string {
	return control.Socket(filepath.Join(runDir, "nbd"), domain)
}

// HeldDirOf returns where the server of a domain's disks keeps writes that it
// holds back from shared storage.
func HeldDirOf(runDir, domain string) string {
	return filepath.Join(runDir, "held", xlft.FileName(domain))
}

// DirtyDirOf returns where the server of a domain's disks keeps the records of
// what the backup's copies lack.
func DirtyDirOf(runDir, domain string) string {
	return filepath.Join(runDir, "dirty", xlft.FileName(domain))
}

// A Client sends commands to a domain's disk server. It is an xlft.Disks.
type Client struct {
	path  string
	c     *control.Client // of a session. It keeps its connection, because the domain is suspended during a seal
	order Order

	mu     sync.Mutex
	last   Report
	cancel context.CancelFunc
	told   chan struct{} // closed when the server knows that the domain runs alone, or can't be told; nil at first
}

// NewClient returns a client of the server behind a command socket, for the
// replication of disks to a peer.
func NewClient(path, peer string, disks []wire.Disk) *Client {
	return &Client{path: path, c: control.NewClient(path), order: Order{Peer: peer, Disks: disks}}
}

func (c *Client) post(ctx context.Context, what string, out any) error {
	if err := control.Call(ctx, c.path, http.MethodPost, what, nil, out); err != nil {
		return fmt.Errorf("disk server: %w", err)
	}
	return nil
}

// Replicate starts the replication of the disks in a session, and returns when
// they are in sync. lost is called if it ends by itself after that.
func (c *Client) Replicate(ctx context.Context, id string, lost func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	c.cancel = cancel
	c.last = Report{}
	told := c.told
	c.mu.Unlock()
	if told != nil {
		// A server that learned of it later would take the copy of this session for
		// an older one.
		select {
		case <-told:
		case <-ctx.Done():
			cancel()
			return ctx.Err()
		}
	}
	o := c.order
	o.Session, o.Path = id, wire.Path(ctx)
	c.c.Forget()
	reports, err := c.c.Open(ctx, http.MethodPost, "/replicate", o)
	if err != nil {
		cancel()
		return err
	}
	dec := json.NewDecoder(reports)
	for {
		r, err := c.next(dec)
		if err != nil {
			cancel()
			reports.Close()
			return err
		}
		if synced(r, len(o.Disks)) {
			break
		}
	}
	go func() {
		defer cancel()
		defer reports.Close()
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

// End ends the replication.
func (c *Client) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}

// Progress returns the progress of the first copies.
func (c *Client) Progress() []xlft.DiskProgress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.Disks
}

// Held returns how many bytes of the backup's fullest journal are used, and its
// size.
func (c *Client) Held() (held, limit uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uint64(c.last.Held), uint64(c.last.Limit), nil
}

// Close does nothing: the disk server outlives the protector, and holds nothing
// any more.
func (c *Client) Close() error { return nil }

// send sends a command over the session's connection.
func (c *Client) send(what string) error {
	if err := c.c.Call(context.Background(), http.MethodPost, what, nil, nil); err != nil {
		return fmt.Errorf("disk server: %w", err)
	}
	return nil
}

// Seal ends an epoch of all disks.
func (c *Client) Seal(epoch uint64) error {
	return c.send(fmt.Sprintf("/seal/%d", epoch))
}

// Release says that the backup has acknowledged an epoch.
func (c *Client) Release(epoch uint64) error {
	return c.send(fmt.Sprintf("/release/%d", epoch))
}

// againFor bounds how long a decision is sent again to a server that was
// killed. Until its successor gets it, the domain's writes wait.
const againFor = 15 * time.Second

// decide sends the decision on writes that are held back.
func (c *Client) decide(what string) error {
	if !c.holds() {
		return nil
	}
	begun := time.Now()
	for {
		err := c.send(what)
		if !errors.Is(err, control.ErrDown) || time.Since(begun) > againFor {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// holds reports whether there is a disk whose writes are held back.
func (c *Client) holds() bool {
	return slices.ContainsFunc(c.order.Disks, func(d wire.Disk) bool { return d.Shared })
}

// ReleaseAll says that the domain runs alone, and releases the writes that are
// held back from shared storage.
func (c *Client) ReleaseAll() error {
	if !c.holds() {
		c.tellAlone()
		return nil
	}
	return c.decide("/release-all")
}

// tellAlone tells the server that the domain runs alone. Nothing is held back, so
// that nobody waits for a server that does not answer.
func (c *Client) tellAlone() {
	if len(c.order.Disks) == 0 {
		return
	}
	told := make(chan struct{})
	c.mu.Lock()
	before := c.told
	c.told = told
	c.mu.Unlock()
	go func() {
		defer close(told)
		if before != nil {
			<-before
		}
		ctx, cancel := context.WithTimeout(context.Background(), againFor)
		defer cancel()
		c.post(ctx, "/release-all", nil) // a server that died loses the connection to the copy as well, and its successor hears of the next session's end
	}()
	select {
	case <-told:
	case <-time.After(tellFor): // this process may be about to end
	}
}

// tellFor is how long the server is given to answer that the domain runs alone.
const tellFor = 500 * time.Millisecond

// Discard discards the writes that are held back, and gives the disks up.
func (c *Client) Discard() error { return c.decide("/discard") }

// Drain waits until shared storage has every epoch that was released.
func (c *Client) Drain(ctx context.Context) error {
	if !c.holds() {
		return nil
	}
	if err := c.c.Call(ctx, http.MethodPost, "/drain", nil, nil); err != nil {
		return fmt.Errorf("disk server: %w", err)
	}
	return nil
}

// Attach makes a disk a block device of this host.
func (c *Client) Attach(ctx context.Context, vdev string, who User) (device string, err error) {
	q := url.Values{"user": {who.Name}, "vm": {who.VM}}
	err = c.post(ctx, "/attach/"+vdev+"?"+q.Encode(), &device)
	return device, err
}

// Open serves a disk on the client socket only.
func (c *Client) Open(ctx context.Context, vdev string) error {
	return c.post(ctx, "/open/"+vdev, nil)
}

// Detach undoes a user's Attach, or as the Operator also Open.
func (c *Client) Detach(ctx context.Context, vdev, user string) error {
	return c.post(ctx, "/detach/"+vdev+"?"+url.Values{"user": {user}}.Encode(), nil)
}

// Status returns the open disks.
func (c *Client) Status(ctx context.Context) (st []DiskStatus, err error) {
	err = control.Call(ctx, c.path, http.MethodGet, "/status", nil, &st)
	return st, err
}

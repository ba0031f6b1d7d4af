//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"xlft/tests/lab/agent"
)

// ErrDown means that the host is not running.
var ErrDown = errors.New("host is down")

var errAttached = errors.New("the process that keeps the lab up has the life of its hosts")

// A Host is one of the two Xen hosts.
type Host struct {
	hostSpec
	net  *network
	img  image
	snap snapshot
	dir  string

	attached bool // another process has the host's QEMU

	mu    sync.Mutex // guards the fields below
	qemu  *qemu      // nil while the host is down
	conns map[net.Conn]struct{}
}

// Name is A or B; it is the host's hostname too, and each host finds the other one by it.
func (h *Host) Name() string { return h.name }

// IPv4 is the host's address on the LAN.
func (h *Host) IPv4() netip.Addr { return h.lan4 }

// Second returns the host's address on the network of a second path: see Lab.OpenSecond.
func (h *Host) Second() netip.Addr { return h.mgmt4 }

// IPv6 is the host's address on the LAN.
func (h *Host) IPv6() netip.Addr { return h.lan6 }

// Console is the file in which Xen's and dom0's console goes.
func (h *Host) Console() string { return filepath.Join(h.dir, "console.log") }

// PID is the process id of the host's QEMU, or 0 while it is down.
func (h *Host) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.qemu == nil {
		return 0
	}
	return h.qemu.pid()
}

// Kill ends the host at once, as a power cut does: no FIN, no RST, no flush. Killing a host that is down is no error.
func (h *Host) Kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.qemu != nil {
		h.qemu.kill()
		h.qemu = nil
	}
	// Otherwise callers that wait for a command on this host would wait for ever.
	for conn := range h.conns {
		conn.Close()
	}
	clear(h.conns)
}

// Revive restores the host from its snapshot, killing it first if it runs. Nothing of its former state is left.
func (h *Host) Revive(ctx context.Context) error {
	if h.attached {
		return errAttached
	}
	h.Kill()
	if err := h.net.plug(h.hostSpec, true); err != nil {
		return err
	}
	q, err := h.snap.restore(ctx, h.net, h.img, h.hostSpec, h.dir)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.qemu = q
	h.mu.Unlock()
	if err := h.awaitAgent(ctx); err != nil {
		return err
	}
	if err := h.setClock(ctx); err != nil {
		return err
	}
	return h.net.forget()
}

// Boot starts a killed host from its disk as it was left, which takes as long as a boot takes. Data that its kernel had
// not written by then is lost.
func (h *Host) Boot(ctx context.Context) error { return h.BootLacking(ctx) }

// BootLacking is Boot with a processor that lacks features, as QEMU calls them.
func (h *Host) BootLacking(ctx context.Context, features ...string) error {
	if h.attached {
		return errAttached
	}
	h.Kill()
	q, err := startQEMU(h.net.ns, machine{hostSpec: h.hostSpec, image: h.img, disk: filepath.Join(h.dir, "disk.qcow2"),
		san: sanOf(h.dir), dir: h.dir, lacks: lacking(features)})
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.qemu = q
	h.mu.Unlock()
	if err := h.awaitAgent(ctx); err != nil {
		return err
	}
	if _, err := h.Run(ctx, "sh", "-c", "systemctl is-system-running --wait || { systemctl --failed --plain --no-legend >&2; exit 1; }"); err != nil {
		return err
	}
	return h.net.forget()
}

func lacking(features []string) string {
	s := ""
	for _, f := range features {
		s += ",-" + f
	}
	return s
}

// AwaitOff waits until the host has switched itself off.
func (h *Host) AwaitOff(ctx context.Context) error {
	h.mu.Lock()
	q := h.qemu
	h.mu.Unlock()
	if q != nil {
		select {
		case <-q.gone:
		case <-ctx.Done():
			return fmt.Errorf("host %s is not off: %w", h.name, context.Cause(ctx))
		}
	}
	h.Kill() // ends the calls that still wait for the host
	return nil
}

// Pause stops the host as if it hung: its connections stay and it sends nothing. Its clock jumps when it resumes.
func (h *Host) Pause() error { return h.signal(syscall.SIGSTOP) }

// Resume lets a paused host run on.
func (h *Host) Resume() error { return h.signal(syscall.SIGCONT) }

func (h *Host) signal(sig syscall.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.qemu == nil {
		return fmt.Errorf("host %s: %w", h.name, ErrDown)
	}
	if err := h.qemu.signal(sig); err != nil {
		return fmt.Errorf("host %s: signal QEMU: %w", h.name, err)
	}
	return nil
}

// CutLAN pulls the host's LAN cable: nothing comes through in either direction, and the host sees its link up as
// before. Commands still reach it.
func (h *Host) CutLAN() error { return h.net.plug(h.hostSpec, false) }

// RestoreLAN plugs the cable in again.
func (h *Host) RestoreLAN() error { return h.net.plug(h.hostSpec, true) }

func (h *Host) setClock(ctx context.Context) error {
	now := strconv.FormatFloat(float64(time.Now().UnixNano())/1e9, 'f', 3, 64)
	_, err := h.Run(ctx, "date", "-s", "@"+now)
	return err
}

// awaitAgent waits until the host takes commands.
func (h *Host) awaitAgent(ctx context.Context) error {
	err := poll(ctx, 20*time.Millisecond, func() error {
		h.mu.Lock()
		q := h.qemu
		h.mu.Unlock()
		if q == nil {
			return stop(ErrDown)
		}
		if err := q.alive(); err != nil {
			return stop(err)
		}
		try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		conn, err := h.dialAgent(try)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		return fmt.Errorf("host %s: wait for its agent: %w", h.name, err)
	}
	return nil
}

// dialAgent connects to the agent. The connection breaks when the host is killed.
func (h *Host) dialAgent(ctx context.Context) (net.Conn, error) {
	conn, err := h.net.dial(ctx, "tcp", netip.AddrPortFrom(h.mgmt4, agent.Port).String())
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.qemu == nil && !h.attached {
		conn.Close()
		return nil, ErrDown
	}
	if h.conns == nil {
		h.conns = map[net.Conn]struct{}{}
	}
	h.conns[conn] = struct{}{}
	return &hostConn{Conn: conn, host: h}, nil
}

// A hostConn is forgotten by its host when it is closed.
type hostConn struct {
	net.Conn
	host *Host
}

func (c *hostConn) Close() error {
	c.host.mu.Lock()
	delete(c.host.conns, c.Conn)
	c.host.mu.Unlock()
	return c.Conn.Close()
}

// keep saves the host's logs under dir.
func (h *Host) keep(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"console.log", "qemu.log"} {
		body, err := os.ReadFile(filepath.Join(h.dir, name))
		if err != nil {
			continue // a host that never ran has none
		}
		if err := os.WriteFile(filepath.Join(dir, h.name+"-"+name), body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

package processes

import (
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"xlft/netbuffer"
	"xlft/netbuffer/netbuffertest"
	"xlft/xlft"
)

// Call and Answer are SimCall and SimAnswer of xlft/internal/xen.
type Call struct {
	Op       string
	ID       uint32
	Name, To string
	Config   []byte
	Queue    int
	Action   int32
	N        uint64
	PFNs     []uint64
	Data     []byte
}

type listed struct {
	ID         uint32
	Name, UUID string
}

type Answer struct {
	Err     string
	ID      uint32
	Domains []listed
	Config  []byte
	OK      bool
	Current int
	State   int
	Why     string
	N       uint64
	Limit   uint64
	PFNs    []uint64
	Data    []byte
	Queue   netbuffer.QueueState
}

// Xen answers one of a host's processes.
type Xen struct {
	h   *host
	pid int
}

// Call is for net/rpc.
func (x *Xen) Call(c Call, a *Answer) error {
	t := x.h.springs(x.pid, c.Op)
	if t != nil && t.before {
		syscall.Kill(x.pid, syscall.SIGKILL)
		return nil
	}
	if err := x.h.call(c, a); err != nil {
		a.Err = err.Error()
	}
	if t != nil {
		syscall.Kill(x.pid, syscall.SIGKILL)
	}
	return nil
}

// A trap kills a process when it calls the hypervisor.
type trap struct {
	pid    int    // of the process; 0: a restore worker
	op     string // "": any
	calls  int    // that it may still make
	before bool   // the call that it dies at has no effect
	with   *unit  // dies just before
}

// springs returns the host's trap, if it kills the caller at this call.
func (h *host) springs(pid int, op string) *trap {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	t := h.trap
	if t == nil || t.pid != 0 && t.pid != pid || t.pid == 0 && !isWorker(pid) || t.op != "" && t.op != op {
		return nil
	}
	if t.calls--; t.calls > 0 {
		return nil
	}
	h.trap = nil
	if t.with != nil {
		t.with.signal(syscall.SIGKILL)
	}
	h.w.say("%s: process %d dies at %s, before: %v", h.name, pid, op, t.before)
	return t
}

func isWorker(pid int) bool {
	a := args(pid)
	return comm(pid) == "xlft" && a[len(a)-1] == "restore-worker"
}

var errOff = errors.New("the host has no power")

const uuid = "3b2f7a5e-4c1d-4a8e-9a57-0c6d2f1b8e11"

func (h *host) call(c Call, a *Answer) (err error) {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !h.on {
		return errOff
	}
	switch c.Op {
	case "domains":
		for _, d := range h.domains {
			a.Domains = append(a.Domains, listed{d.id, d.name, uuid})
		}
		return nil
	case "create":
		d := w.newDomain(h, c.Name, c.Config)
		d.replica, d.paused = true, 1
		a.ID = d.id
		return nil
	}
	if strings.HasPrefix(c.Op, "gate") {
		return h.gate(c, a)
	}
	d := h.domains[c.ID]
	if d == nil {
		switch c.Op {
		case "destroy":
			return nil
		case "state":
			a.State, a.Why = int(xlft.GuestOver), "destroyed"
			return nil
		case "suspend":
			a.Why = "destroyed"
			return nil
		}
		return syscall.ESRCH
	}
	switch c.Op {
	case "config":
		a.Config = d.config
	case "destroy":
		d.gone = true
		delete(h.domains, d.id)
	case "pause":
		d.paused++
	case "unpause":
		if d.paused == 0 {
			return errors.New("it is not paused")
		}
		if d.paused--; d.paused == 0 {
			w.mayRun(d)
		}
	case "rename":
		d.name = c.To
	case "suspend":
		if a.OK = d.paused == 0; a.OK {
			d.asleep = true
		}
	case "resume":
		d.asleep = false
		d.goOn()
	case "dirty":
		a.N = uint64(len(d.dirty))
	case "memory":
		a.N, a.Limit = uint64(len(d.mem)), d.limit
	case "set-limit":
		d.limit = c.N
	case "state":
		if d.asleep {
			a.State = int(xlft.GuestSuspended)
		}
	case "take-log":
		if last := c.N > 0; last && !d.asleep {
			w.violate("P4", "a checkpoint is taken of a domain that runs")
		}
		a.PFNs = d.takeLog()
	case "mark":
		d.dirty[c.N] = true
	case "marked":
		a.OK = d.dirty[c.N]
	case "read":
		a.Data, err = d.read(c.PFNs)
		return err
	case "write":
		for i, p := range c.PFNs {
			if p >= uint64(len(d.mem)) || len(c.Data) < (i+1)*pageSize {
				return fmt.Errorf("page %d is not the domain's", p)
			}
			copy(d.mem[p], c.Data[i*pageSize:(i+1)*pageSize])
		}
		d.complete = false
	case "complete":
		d.complete = true
	default:
		return fmt.Errorf("unknown call %q", c.Op)
	}
	return nil
}

// gate is the kernel: a vif's queues outlive its domain.
func (h *host) gate(c Call, a *Answer) (err error) {
	p := h.paths[c.ID]
	if p == nil {
		return errors.New("no such vif")
	}
	switch c.Op {
	case "gate":
		a.Current, a.OK = p.Current(), p.Holding()
	case "gate-change":
		err = p.Change(c.Queue, netbuffer.Action(c.Action))
	case "gate-steer":
		err = p.Steer(c.Queue)
	case "gate-empty":
		a.OK, err = p.Empty(c.Queue)
	case "gate-state":
		a.Queue, err = p.State(c.Queue)
	case "gate-destroy":
		p.Destroy()
	}
	return err
}

func (w *World) newDomain(h *host, name string, config []byte) *domain {
	w.lastID++
	d := &domain{id: w.lastID, name: name, config: config, host: h, dirty: map[uint64]bool{}, limit: pages}
	for range pages {
		d.mem = append(d.mem, make([]byte, pageSize))
	}
	d.path = netbuffertest.NewPath(func(b []byte) { w.deliver(unpack(b)) })
	h.domains[d.id], h.paths[d.id] = d, d.path
	return d
}

// lastDomain returns the newest domain's id.
func (w *World) lastDomain() uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastID
}

// mayRun lets a domain run that nobody pauses any more.
func (w *World) mayRun(d *domain) {
	if d.replica && !d.complete {
		w.violate("P4", "a domain runs on %s that its restore did not complete", d.host.name)
	}
	if d.life == nil {
		w.birth(d)
	}
	d.goOn()
}

// serve answers the host's processes on a unix socket, and knows them by it.
func (h *host) serve() error {
	path := filepath.Join(h.dir, "xen")
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	h.hv = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			pid := peerOf(c)
			srv := rpc.NewServer()
			if err := srv.RegisterName("Xen", &Xen{h, pid}); err != nil {
				panic(err)
			}
			h.w.mu.Lock()
			if !h.on {
				h.w.mu.Unlock()
				c.Close()
				continue
			}
			h.users[c] = pid
			h.w.mu.Unlock()
			go func() {
				srv.ServeConn(c)
				h.w.mu.Lock()
				delete(h.users, c)
				h.w.mu.Unlock()
			}()
		}
	}()
	return nil
}

func peerOf(c net.Conn) (pid int) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(u.Pid)
		}
	})
	return pid
}

// dead reports whether a process has ended; zombies have.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

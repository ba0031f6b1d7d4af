package simxen

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"xlft/xlft"
)

// errDead is what every call of a killed process returns.
var errDead = errors.New("simxen: this process is dead")

// A Host runs domains and processes, and can lose its power.
type Host struct {
	Name string
	// DurableAck makes the host, as a backup, ack an epoch only when its disk writes are on stable storage.
	DurableAck bool
	// ReplayTwice is a broken variant: an old part of the journal is replayed again.
	ReplayTwice bool
	// Slow is the longest time that a call to the hypervisor, the kernel, a disk or an arbiter takes. Each call takes a
	// random part of it.
	Slow time.Duration

	outside *Outside
	net     *Net
	wg      sync.WaitGroup

	mu      sync.Mutex
	down    bool
	domains map[string]*Domain
	ran     map[string]bool // by domain: whether the newest replica came to run
	procs   []*Process
	platter *Platter    // the domain's disk
	held    *epochFiles // held writes to shared storage; nil: the platter is the host's own
}

// NewHost returns a host with power that o watches and n connects.
func NewHost(o *Outside, n *Net, name string) *Host {
	return &Host{Name: name, outside: o, net: n, domains: map[string]*Domain{}, ran: map[string]bool{}, platter: newPlatter()}
}

// Domain returns a domain, or nil.
func (h *Host) Domain(name string) *Domain {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.domains[name]
}

// work waits for a part of Slow.
func (h *Host) work() {
	if h.Slow > 0 {
		time.Sleep(time.Duration(h.outside.Rand() % uint64(h.Slow)))
	}
}

// Crash is a power cut: processes and domains are gone, and no connection is closed.
func (h *Host) Crash() {
	h.mu.Lock()
	h.down = true
	procs, domains := h.procs, h.domains
	h.procs, h.domains, h.ran = nil, map[string]*Domain{}, map[string]bool{}
	h.mu.Unlock()
	h.net.silence(h.Name)
	for _, p := range procs {
		p.kill()
	}
	for _, d := range domains {
		d.destroy()
		d.vif.destroy()
		if s := d.shared(); s != nil {
			h.wg.Go(s.GiveUp)
		}
	}
}

// PowerOn is the end of a power cut. The host has its records and disks, and neither domains nor processes; who was
// connected to it is told when it answers again.
func (h *Host) PowerOn() {
	h.mu.Lock()
	h.down = false
	h.mu.Unlock()
	h.net.awaken(h.Name)
}

// Down reports whether the host has lost power.
func (h *Host) Down() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down
}

// Wait waits until everything that ran on the host has ended.
func (h *Host) Wait() { h.wg.Wait() }

// Shutdown destroys the host's domains at the end of a test, and waits for what ran on it.
func (h *Host) Shutdown() {
	h.mu.Lock()
	domains := h.domains
	h.domains = map[string]*Domain{}
	h.mu.Unlock()
	for _, d := range domains {
		d.destroy()
		if s := d.shared(); s != nil {
			s.GiveUp()
		}
	}
	h.wg.Wait()
}

// A Process is a protector or a receiver. After it is killed nothing that it still does has an effect, and its
// connections break.
type Process struct {
	h      *Host
	dead   atomic.Bool
	ctx    context.Context
	cancel context.CancelFunc

	atSave atomic.Pointer[killing]

	mu    sync.Mutex
	conns []*Conn
	kills []func()
}

// A killing is a Kill that waits until the process saves its next record.
type killing struct {
	before bool
	then   func()
}

// Spawn starts a process. The caller runs the code of the process.
func (h *Host) Spawn() *Process {
	p := &Process{h: h}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.procs = append(h.procs, p)
	return p
}

// Context ends when the process is killed or asked to stop.
func (p *Process) Context() context.Context { return p.ctx }

// Terminate asks the process to stop, as SIGTERM does.
func (p *Process) Terminate() { p.cancel() }

// Dead reports whether the process was killed.
func (p *Process) Dead() bool { return p.dead.Load() }

// Kill is SIGKILL: the kernel closes its connections.
func (p *Process) Kill() {
	p.kill()
	p.mu.Lock()
	conns := p.conns
	p.mu.Unlock()
	for _, c := range conns {
		c.abort()
	}
}

// KillAtSave kills the process at its next save of a record, before or after the record is saved, and calls then.
func (p *Process) KillAtSave(before bool, then func()) { p.atSave.Store(&killing{before, then}) }

// Spare takes KillAtSave back.
func (p *Process) Spare() { p.atSave.Store(nil) }

func (p *Process) kill() {
	p.dead.Store(true)
	p.cancel()
	// Unblock the goroutines that wait on this process's connections, so that the test can end. The other side is not
	// told.
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.unblock()
	}
	for _, f := range p.kills {
		f()
	}
	p.kills = nil
}

// onKill registers what the kernel does when the process is killed.
func (p *Process) onKill(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kills = append(p.kills, f)
}

func (p *Process) own(c *Conn) {
	p.mu.Lock()
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	if p.Dead() {
		c.unblock()
	}
}

// Store returns records as the process reaches them.
func (p *Process) Store(records xlft.Store) xlft.Store { return &processStore{records, p} }

type processStore struct {
	xlft.Store
	p *Process
}

func (s *processStore) Save(domain string, o xlft.Ownership) error {
	s.p.h.work()
	if s.p.Dead() {
		return errDead
	}
	if k := s.p.atSave.Swap(nil); k != nil {
		if !k.before {
			s.Save(domain, o)
		}
		s.p.Kill()
		k.then()
		return errDead
	}
	return s.Store.Save(domain, o)
}

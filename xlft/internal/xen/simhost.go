//go:build simxen && !xen

package xen

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"strconv"
	"syscall"

	"xlft/netbuffer"
	"xlft/savestream"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// With the build tag simxen, Host is a host of tests/processes: a hypervisor that
// another process simulates, behind the unix socket that SimEnv names. All else in
// the program is as it is.

// LibDir is where libxl keeps files of the domains: there is no libxl.
const LibDir = ""

// SimEnv is the environment variable with the path of the simulated hypervisor's
// socket.
const SimEnv = "XLFT_SIMXEN"

// A SimCall is a call of the simulated hypervisor or its kernel.
type SimCall struct {
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

// A SimAnswer is the answer to a SimCall.
type SimAnswer struct {
	Err     string
	ID      uint32
	Domains []Domain
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

// Host stands for libxl, libxc and xenstore of this host.
type Host struct{ c *rpc.Client }

// Open connects to the simulated hypervisor.
func Open() (*Host, error) {
	path := os.Getenv(SimEnv)
	if path == "" {
		return nil, fmt.Errorf("%s is not set: %w", SimEnv, ErrNoXen)
	}
	c, err := rpc.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open hypervisor: %w", err)
	}
	return &Host{c}, nil
}

func (h *Host) call(c SimCall) (a SimAnswer, err error) {
	if err := h.c.Call("Xen.Call", c, &a); err != nil {
		return a, fmt.Errorf("%s of domain %d: %w", c.Op, c.ID, err)
	}
	if a.Err == syscall.ESRCH.Error() {
		return a, fmt.Errorf("%s of domain %d: %w", c.Op, c.ID, syscall.ESRCH)
	}
	if a.Err != "" {
		return a, fmt.Errorf("%s of domain %d: %s", c.Op, c.ID, a.Err)
	}
	return a, nil
}

func (h *Host) do(c SimCall) error {
	_, err := h.call(c)
	return err
}

// Close hangs up.
func (h *Host) Close() { h.c.Close() }

// Info says what this host can do.
func (h *Host) Info() (Info, error) {
	return Info{Version: "4.17", FreeKiB: 16 << 20, HAP: true}, nil
}

// Domains lists the domains.
func (h *Host) Domains() ([]Domain, error) {
	a, err := h.call(SimCall{Op: "domains"})
	return a.Domains, err
}

// Lookup finds a domain by name or id.
func (h *Host) Lookup(name string) (Domain, error) {
	all, err := h.Domains()
	if err != nil {
		return Domain{}, err
	}
	for _, d := range all {
		if d.Name == name || strconv.FormatUint(uint64(d.ID), 10) == name {
			return d, nil
		}
	}
	return Domain{}, fmt.Errorf("%w: %q", ErrNoDomain, name)
}

// Config returns the domain's configuration as libxl's JSON.
func (h *Host) Config(domid uint32) (json.RawMessage, error) {
	a, err := h.call(SimCall{Op: "config", ID: domid})
	return a.Config, err
}

func (h *Host) Destroy(domid uint32) error { return h.do(SimCall{Op: "destroy", ID: domid}) }
func (h *Host) Pause(domid uint32) error   { return h.do(SimCall{Op: "pause", ID: domid}) }
func (h *Host) Unpause(domid uint32) error { return h.do(SimCall{Op: "unpause", ID: domid}) }

// Rename changes a domain's name.
func (h *Host) Rename(domid uint32, from, to string) error {
	return h.do(SimCall{Op: "rename", ID: domid, Name: from, To: to})
}

// CPUID and MostCPUID know of no processor: all are alike.
func (h *Host) CPUID(uint32) ([]wire.CPUIDLeaf, error)   { return nil, nil }
func (h *Host) MostCPUID(bool) ([]wire.CPUIDLeaf, error) { return nil, nil }

// Restore is libxl's: records are kept until their checkpoint is whole, then
// applied; at the stream's end the domain is complete, and paused.
func (h *Host) Restore(config json.RawMessage, name string, stream *os.File) (uint32, error) {
	a, err := h.call(SimCall{Op: "create", Name: name, Config: config})
	if err != nil {
		return 0, err
	}
	if err := h.restore(a.ID, stream); err != nil {
		return 0, errors.Join(fmt.Errorf("restore %s: %w", name, err), h.Destroy(a.ID))
	}
	return a.ID, h.do(SimCall{Op: "complete", ID: a.ID})
}

func (h *Host) restore(domid uint32, stream *os.File) error {
	dec := savestream.NewLibxlDecoder(stream)
	whole := 0
	var pending []savestream.PageData
	apply := func(ps ...savestream.PageData) error {
		for _, p := range ps {
			c := SimCall{Op: "write", ID: domid}
			for e, data := range p.All() {
				c.PFNs = append(c.PFNs, e.PFN)
				c.Data = append(c.Data, data...)
			}
			if err := h.do(c); err != nil {
				return err
			}
		}
		return nil
	}
	for {
		item, err := dec.Next()
		switch {
		case err != nil && whole > 0 && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)):
			return nil // as libxc, which fails over to the last checkpoint
		case err != nil:
			return err
		case item.Libxc == nil:
			continue
		}
		switch item.Libxc.Type {
		case savestream.PageDataType:
			r := *item.Libxc
			r.Body = append([]byte(nil), r.Body...)
			p, err := savestream.ParsePageData(r.Body)
			if err != nil {
				return err
			}
			if whole > 0 {
				pending = append(pending, p)
			} else if err := apply(p); err != nil {
				return err
			}
		case savestream.Checkpoint:
			if err := apply(pending...); err != nil {
				return err
			}
			pending = nil
			whole++
		}
	}
}

// Gate returns a domain's queues in the simulated kernel, and how an earlier
// process left them.
func (h *Host) Gate(domid uint32) (p SimPath, current int, holding bool, err error) {
	a, err := h.call(SimCall{Op: "gate", ID: domid})
	return SimPath{h, domid}, a.Current, a.OK, err
}

// A SimPath is a netbuffer.Path in the simulated kernel.
type SimPath struct {
	h  *Host
	id uint32
}

func (p SimPath) Change(queue int, a netbuffer.Action) error {
	return p.h.do(SimCall{Op: "gate-change", ID: p.id, Queue: queue, Action: int32(a)})
}

func (p SimPath) Steer(queue int) error {
	return p.h.do(SimCall{Op: "gate-steer", ID: p.id, Queue: queue})
}

func (p SimPath) Empty(queue int) (bool, error) {
	a, err := p.h.call(SimCall{Op: "gate-empty", ID: p.id, Queue: queue})
	return a.OK, err
}

func (p SimPath) State(queue int) (netbuffer.QueueState, error) {
	a, err := p.h.call(SimCall{Op: "gate-state", ID: p.id, Queue: queue})
	return a.Queue, err
}

// Destroy drops the queues with what is in them.
func (p SimPath) Destroy() error { return p.h.do(SimCall{Op: "gate-destroy", ID: p.id}) }

// errNoLife: domains of the simulated hypervisor do not end by themselves.
var errNoLife = errors.New("the simulated hypervisor does not start domains again")

func (h *Host) End(uint32) (xlft.GuestState, bool, string, error) { return 0, false, "", errNoLife }
func (h *Host) Paused(uint32) (bool, error)                       { return false, nil } // nobody pauses one before it is protected
func (h *Host) Unfinished(uint32) (bool, error)                   { return false, errNoLife }
func (h *Host) Create(json.RawMessage) (uint32, error)            { return 0, errNoLife }
func (h *Host) CoreDump(uint32, string) error                     { return errNoLife }
func (h *Host) SoftReset(uint32, json.RawMessage) error           { return errNoLife }

// XenstoreRead finds nothing: there is no xenstore.
func (*Host) XenstoreRead(string) string { return "" }

// XenstoreList finds nothing.
func (*Host) XenstoreList(string) []string { return nil }

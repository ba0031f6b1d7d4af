package evtchn

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var (
	// ErrNoDevice: this kernel does not run on Xen, or lacks the driver.
	ErrNoDevice = errors.New("no /dev/xen/evtchn: is this a dom0, and is the module xen-evtchn loaded (modprobe xen-evtchn)?")
	// ErrNoDomain: there is no domain of that id.
	ErrNoDomain = errors.New("no such domain")
)

// A Port is one domain's end of an event channel. No port is 0.
type Port uint32

// A Kind is what a port is bound to (EVTCHNSTAT_* of public/event_channel.h).
type Kind uint32

const (
	Closed      Kind = iota // not in use
	Unbound                 // waits for a domain to bind it
	Interdomain             // connected to another domain's port
	PIRQ                    // a physical interrupt
	VIRQ                    // a virtual interrupt of Xen's
	IPI                     // from one vCPU of the domain to another
)

var kinds = [...]string{"closed", "unbound", "interdomain", "pirq", "virq", "ipi"}

func (k Kind) String() string {
	if int(k) < len(kinds) {
		return kinds[k]
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// A State is what Xen knows of a port.
type State struct {
	Port Port
	Kind Kind
	VCPU uint32 // which the event interrupts
	// Domain is the other end's, or who may bind an unbound port.
	Domain     uint32
	RemotePort Port   // the other end; interdomain only
	IRQ        uint32 // of a PIRQ or a VIRQ
}

// statusLen is the size of struct evtchn_status in bytes: the domain (u16) and padding,
// port, status and vCPU (u32 each), and a union of at most a domain (u16), padding and a
// port.
const statusLen = 24

func encodeStatus(b []byte, domid uint32, p Port) {
	clear(b[:statusLen])
	binary.NativeEndian.PutUint16(b, uint16(domid))
	binary.NativeEndian.PutUint32(b[4:], uint32(p))
}

func decodeStatus(b []byte) State {
	s := State{
		Port: Port(binary.NativeEndian.Uint32(b[4:])),
		Kind: Kind(binary.NativeEndian.Uint32(b[8:])),
		VCPU: binary.NativeEndian.Uint32(b[12:]),
	}
	switch s.Kind {
	case Unbound, Interdomain:
		s.Domain = uint32(binary.NativeEndian.Uint16(b[16:]))
		if s.Kind == Interdomain {
			s.RemotePort = Port(binary.NativeEndian.Uint32(b[20:]))
		}
	case PIRQ, VIRQ:
		s.IRQ = binary.NativeEndian.Uint32(b[16:])
	}
	return s
}

// virqs are the names of Xen's virtual interrupts (VIRQ_* of public/xen.h).
var virqs = map[uint32]string{
	0: "timer", 1: "debug", 2: "console", 3: "domain-exception", 4: "trace-buffer", 6: "debugger", 7: "xenoprof",
	8: "console-ring", 9: "pcpu-state", 10: "memory-event", 11: "argo", 12: "enomem", 13: "pmu", 16: "machine-check",
}

// VIRQName returns what a virtual interrupt is for.
func VIRQName(virq uint32) string {
	if s, ok := virqs[virq]; ok {
		return s
	}
	return fmt.Sprintf("virq%d", virq)
}

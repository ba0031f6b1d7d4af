package netbuffer

import (
	"errors"
	"fmt"
)

var (
	// ErrHeld: an epoch is sealed and not released, so Seal can't seal another.
	ErrHeld = errors.New("an epoch is sealed and not released")
	// ErrEpoch: Seal needs an epoch above the last one, and Release the epoch
	// that is sealed.
	ErrEpoch = errors.New("wrong epoch")
	// ErrAdopted: an earlier process left the gate holding. The packets in it
	// belong to epochs that this process does not know; call ReleaseAll or
	// Discard first.
	ErrAdopted = errors.New("gate was found holding packets of an earlier process")
	// ErrNewVif: the domain has a vif without a gate. See NewVifError.
	ErrNewVif = errors.New("vif without a gate")
	// ErrForeign: some other program has ingress filters, BPF programs or
	// nftables chains at the vif. A gate would disable them, or they the gate.
	// See ForeignError.
	ErrForeign = errors.New("vif has ingress filters of some other program")
	// ErrBypassed: some other program removed the redirect of a vif; the vif's
	// output leaves at once.
	ErrBypassed = errors.New("redirect to the gate is gone")
	// ErrDropped: packets of an epoch that the gate holds were dropped, because
	// a queue was full, or the kernel had no memory to copy them. To the domain's
	// peers they are packets that the network lost.
	ErrDropped = errors.New("packets dropped by the gate: it was full, or the host short of memory")
	// ErrBusy: a queue that was opened did not run empty in time.
	ErrBusy = errors.New("released packets do not leave")
	// ErrBroken: after an earlier error the gate does not know which vifs are
	// sealed. All packets stay held; ReleaseAll, Discard and Close still work.
	ErrBroken = errors.New("gate is in an unknown state")
	// ErrClosed: the gate was closed or discarded.
	ErrClosed = errors.New("gate is closed")
	// ErrUnsupported: the kernel lacks a feature (see UnsupportedError), or is
	// not Linux.
	ErrUnsupported = errors.New("not in this kernel")
	// ErrNoVif: a vif that Options names does not exist in this network
	// namespace. See NoVifError.
	ErrNoVif = errors.New("no such vif")
	// ErrMoved: a vif was moved to another network namespace, where its output
	// is not held.
	ErrMoved = errors.New("vif was moved to another network namespace, where its output is not held")
)

// A NewVifError names interfaces of the domain that appeared since the gate was
// opened. Nothing was sealed. The packets that the interfaces sent so far were
// not held. AddVifs gives them gates.
type NewVifError struct{ Vifs []string }

func (e *NewVifError) Error() string { return fmt.Sprintf("netbuffer: no gate on %v", e.Vifs) }
func (e *NewVifError) Unwrap() error { return ErrNewVif }

// A NoVifError names a vif that should be here. It may not have been made yet, or
// be in another network namespace.
type NoVifError struct{ Vif string }

func (e *NoVifError) Error() string {
	return fmt.Sprintf("netbuffer: no interface %s in this network namespace, so that its output can't be held", e.Vif)
}
func (e *NoVifError) Unwrap() error { return ErrNoVif }

// A ForeignError says what of some other program is in the way.
type ForeignError struct {
	Vif  string
	What string // "ingress u32 filter with priority 7", "tcx program web (id 12)"
	Show string // command that shows it
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("netbuffer: %s has another program's %s; \"%s\" shows it", e.Vif, e.What, e.Show)
}
func (e *ForeignError) Unwrap() error { return ErrForeign }

// An UnsupportedError says what the kernel lacks and which module may have it.
type UnsupportedError struct {
	Feature string // "plug qdisc"
	Module  string // "sch_plug"
	Err     error  // the kernel's
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("netbuffer: no %s in this kernel (%v)", e.Feature, e.Err)
}

func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }
func (e *UnsupportedError) Unwrap() error        { return e.Err }

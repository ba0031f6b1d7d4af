package netbuffer

import (
	"errors"
	"fmt"
)

var (
	// ErrHeld: an epoch is sealed and not released, so Seal can't seal another.
	ErrHeld = errors.New("an epoch is sealed and not released")
	// ErrEpoch: epochs grow, and Release names the one that is sealed.
	ErrEpoch = errors.New("wrong epoch")
	// ErrAdopted: the gate was found holding; what it holds belongs to epochs
	// that this process does not know. Abandon or Discard it first.
	ErrAdopted = errors.New("gate was found holding packets of an earlier process")
	// ErrNewVif: the domain has a vif without a gate. See NewVifError.
	ErrNewVif = errors.New("vif without a gate")
	// ErrForeign: the vif has ingress filters that are not ours. A gate would
	// switch them off, or they the gate. See ForeignError.
	ErrForeign = errors.New("vif has ingress filters of somebody else")
	// ErrBypassed: somebody removed the redirect of a vif; its output leaves
	// at once.
	ErrBypassed = errors.New("redirect to the gate is gone")
	// ErrBusy: a queue that was opened does not run empty.
	ErrBusy = errors.New("released packets do not leave")
	// ErrBroken: an earlier error left it unknown what is sealed. Everything
	// stays held; Abandon, Discard and Close still work.
	ErrBroken = errors.New("gate is in an unknown state")
	// ErrClosed: the gate was closed or discarded.
	ErrClosed = errors.New("gate is closed")
	// ErrUnsupported: the kernel lacks something. See UnsupportedError.
	ErrUnsupported = errors.New("not in this kernel")
	// ErrNoVif: a vif that Options names does not exist.
	ErrNoVif = errors.New("no such vif")
)

// A NewVifError names vifs that appeared since the gate was opened. Nothing was
// sealed. What they sent so far was not held. Extend gives them gates.
type NewVifError struct{ Vifs []string }

func (e *NewVifError) Error() string { return fmt.Sprintf("netbuffer: no gate on %v", e.Vifs) }
func (e *NewVifError) Unwrap() error { return ErrNewVif }

// A ForeignError says which filter is in the way.
type ForeignError struct {
	Vif    string
	Filter string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("netbuffer: %s has an ingress %s of somebody else", e.Vif, e.Filter)
}
func (e *ForeignError) Unwrap() error { return ErrForeign }

// An UnsupportedError says what the kernel lacks and which module may have it.
type UnsupportedError struct {
	Feature string // "plug qdisc"
	Module  string // "sch_plug"
	Err     error  // what the kernel said
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("netbuffer: no %s in this kernel (%v)", e.Feature, e.Err)
}

func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }
func (e *UnsupportedError) Unwrap() error        { return e.Err }

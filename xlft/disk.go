package xlft

import (
	"fmt"

	"xlft/diskrepl"
)

// DiskRecord is what a host remembers of its copy of a disk.
type DiskRecord struct {
	State DiskState `json:"state"`
	// SyncPoint is the checkpoint that a Consistent copy is of, if that is known.
	SyncPoint diskrepl.SyncPoint `json:"mark,omitzero"`
	// Failed is why the storage of the copy could not be trusted, if it failed in a
	// session and no first copy was completed since. What can be read from it may
	// be the page cache's alone: the next first copy is of all chunks. Such a copy
	// is Inconsistent, or Consistent if its journal repairs it.
	Failed string `json:"failed,omitempty"`
}

// DiskState is what a host's copy of a disk is good for, in DRBD's words. The
// zero value is a disk of which nothing is known: xlft never replicated it.
type DiskState string

const (
	// UpToDate: the domain runs from this copy, or may.
	UpToDate DiskState = "up-to-date"
	// Inconsistent: a first copy is being made, and no domain can run from it.
	Inconsistent DiskState = "inconsistent"
	// Consistent: the copy is as the domain's disk was at some checkpoint.
	Consistent DiskState = "consistent"
	// Outdated: the domain runs elsewhere and has written since.
	Outdated DiskState = "outdated"
)

// earlier are the words for states in records from before version 0.1.0.
var earlier = map[DiskState]DiskState{"active": UpToDate, "copying": Inconsistent, "replica": Consistent}

// UnmarshalText refuses a state that this version does not know: to guess would
// be to let a domain run from a disk that is not its own.
func (s *DiskState) UnmarshalText(b []byte) error {
	st := DiskState(b)
	if now, ok := earlier[st]; ok {
		st = now
	}
	switch st {
	case "", UpToDate, Inconsistent, Consistent, Outdated:
		*s = st
		return nil
	}
	return fmt.Errorf("unknown disk state %q", b)
}

package xlft

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"xlft/diskrepl"
)

// DiskRecord is what a host remembers of its copy of a disk.
type DiskRecord struct {
	State DiskState `json:"state"`
	// SyncPoint is the checkpoint that a Consistent copy is of, if that is known. An
	// Inconsistent copy with a SyncPoint was of that checkpoint, and has since been given
	// nothing but what the primary changed since.
	SyncPoint diskrepl.SyncPoint `json:"mark,omitzero"`
	// Failed is why the storage of the copy could not be trusted, if it failed in a
	// session and no first copy was completed since. What can be read from it may
	// be the page cache's alone: the next first copy is of all chunks. Such a copy
	// is Inconsistent, or Consistent if its journal repairs it.
	Failed string `json:"failed,omitempty"`
	// Data says which data the copy has. Without an ID nothing is known, and so it
	// is of a copy that is Inconsistent.
	Data DataGen `json:"data,omitzero"`
	// Sector is the size in bytes of the disk's sectors as the domain sees them: its
	// partition table depends on it. 0: nothing is said, as in records of versions
	// that knew 512 only.
	Sector int `json:"sector,omitempty"`
}

// Sector returns the size of sectors that n says, of which 0 says 512: what is
// older knows nothing else.
func Sector(n int) int {
	if n == 0 {
		return 512
	}
	return n
}

// A DataGen is a generation of a disk's data, as DRBD's generation identifiers
// are. Two copies with the same ID began with the same data, and at most one of
// them is written to. A host that goes on to write to one of them, while the
// other may be written to elsewhere, makes a new generation of its own.
type DataGen struct {
	ID   string   `json:"id,omitempty"`
	Past []string `json:"past,omitempty"` // that it came from, the newest first
	// Given: a copy on another host may have this generation.
	Given bool `json:"given,omitempty"`
}

// maxPast is how many generations a copy remembers. One is made for each session
// or takeover, and a copy elsewhere is hardly ever more than one behind.
const maxPast = 64

// Next returns a new generation, which comes from g.
func (g DataGen) Next() DataGen {
	var b [8]byte
	rand.Read(b[:])
	next := DataGen{ID: hex.EncodeToString(b[:])}
	if g.ID != "" {
		next.Past = append([]string{g.ID}, g.Past[:min(len(g.Past), maxPast-1)]...)
	}
	return next
}

// Copied returns g as a copy on another host has it.
func (g DataGen) Copied() DataGen { return DataGen{ID: g.ID, Past: g.Past} }

// MayOverwrite returns an error if a copy, of which this host has the record,
// may have newer data than the one that it is to be made equal to.
func (g DataGen) MayOverwrite(r DiskRecord) error {
	switch has := r.Data; {
	case has.ID == "" || r.State == Inconsistent || has.ID == g.ID || slices.Contains(g.Past, has.ID):
		return nil
	case slices.Contains(has.Past, g.ID):
		return ErrNewerHere
	}
	return ErrDiverged
}

// Errors of MayOverwrite.
var (
	ErrNewerHere = errors.New("the copy here is newer: the domain ran from it after the other host's was last equal")
	ErrDiverged  = errors.New("the copies have diverged: the domain ran from each of them since they were equal, or they are of different disks")
)

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

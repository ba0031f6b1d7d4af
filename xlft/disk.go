package xlft

import (
	"xlft/diskrepl"
)

// DiskRecord is what a host remembers of its copy of a disk.
type DiskRecord struct {
	State DiskState `json:"state"`
	// Mark is what a DiskReplica is consistent as of, if that is known.
	Mark diskrepl.SyncPoint `json:"mark,omitzero"`
}

// DiskState is what a copy of a disk is good for.
type DiskState string

const (
	// DiskActive: the domain may run from it.
	DiskActive DiskState = "active"
	// DiskCopying: a first copy is being made; it is inconsistent.
	DiskCopying DiskState = "copying"
	// DiskOutdated: the domain runs elsewhere and has written since.
	DiskOutdated DiskState = "outdated"
	// DiskReplica: it is as the domain's disk was at some checkpoint.
	DiskReplica DiskState = "replica"
)

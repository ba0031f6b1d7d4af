package primary

import (
	"context"

	"xlft/diskrepl"
)

// Disks are the disks of a domain at the primary. Their epochs are sealed,
// released and abandoned by the Session's Output.
type Disks interface {
	// Replicate copies them to the backup, in the session of that id, and
	// returns when both sides are the same. From then on what is written is
	// sent. lost is called, at most once, if that breaks later.
	Replicate(ctx context.Context, session string, lost func(error)) error
	// End ends the replication: what is written goes to this host alone.
	End()
	// Progress returns how far the first copies are.
	Progress() []DiskProgress
}

// DiskProgress is how far the first copy of a disk is.
type DiskProgress struct {
	VDev string `json:"vdev"`
	diskrepl.Progress
}

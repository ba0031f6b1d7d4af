package xlft

import "time"

// A Mode is what ends an epoch.
type Mode string

const (
	// ModeEvent: the domain's output does. The first packet of a domain that was
	// silent starts a checkpoint at once; while it goes on sending, a window
	// keeps the checkpoints apart.
	ModeEvent Mode = "event"
	// ModeStrict: each output does, and the domain stays suspended until the
	// backup has acknowledged the checkpoint, as in Kemari.
	ModeStrict Mode = "strict"
	// ModeInterval: time does, as in Remus. The zero Mode is this one too.
	ModeInterval Mode = "interval"
)

// Pacing is when a domain's checkpoints are taken. All of it may change while the
// domain is protected.
type Pacing struct {
	Mode      Mode          `json:"mode"`
	EpochMin  time.Duration `json:"epoch_min_ns"`        // shortest epoch, in ModeEvent
	EpochMax  time.Duration `json:"epoch_max_ns"`        // longest epoch
	WindowMax time.Duration `json:"event_window_max_ns"` // to which EpochMin grows under load, in ModeEvent
	RunShare  float64       `json:"run_share"`           // of its time that the domain runs at least, in ModeEvent; below 1
	DirtyMax  uint64        `json:"dirty_max"`           // pages written that end an epoch early; 0: no limit
}

// Window is how long the domain has to have run before its output ends the epoch,
// in ModeEvent, if a checkpoint stops it for so long. At the share of one half it
// runs as long as it stands.
func (p Pacing) Window(pause time.Duration) time.Duration {
	w := time.Duration(float64(pause) * p.RunShare / (1 - p.RunShare))
	return min(max(w, p.EpochMin), p.WindowMax)
}

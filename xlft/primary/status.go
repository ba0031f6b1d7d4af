package primary

import (
	"maps"
	"sync"
	"time"

	"xlft/xlft"
)

// Status is what an operator sees of a Session.
type Status struct {
	Domain string `json:"domain"`
	Peer   string `json:"peer"`
	// PeerAddress is the path that the session has; "" while there is no session.
	PeerAddress string `json:"peer_address,omitempty"`
	Arbiter     string `json:"arbiter"`
	// Health is whether the arbiters of both hosts could decide now.
	Health    xlft.Health `json:"arbiter_health,omitzero"`
	State     State       `json:"state"`
	Protected bool        `json:"protected"`
	Since     time.Time   `json:"since"`
	// Lacking is since when no backup could take over; zero: one can.
	Lacking    time.Time `json:"unprotected_since,omitzero"`
	Generation uint64    `json:"generation"`
	LastError  string    `json:"last_error,omitempty"`
	// SplitBrain: the backup said, when it was last heard, that it runs the domain
	// too.
	SplitBrain bool `json:"split_brain,omitempty"`

	Epoch     uint64    `json:"epoch"` // newest acked
	LastAck   time.Time `json:"last_ack"`
	SyncBytes uint64    `json:"sync_bytes"` // sent of the first checkpoint
	SyncTotal uint64    `json:"sync_total"` // its size, estimated

	Checkpoints uint64 `json:"checkpoints"` // acked since the session began
	// Reasons has those checkpoints by what asked for them.
	Reasons   map[Why]uint64 `json:"reasons"`
	PagesSent uint64         `json:"pages_sent"`
	BytesSent uint64         `json:"bytes_sent"`       // of the stream
	WireBytes uint64         `json:"wire_bytes"`       // what these took on the wire
	PageCache int64          `json:"page_cache_bytes"` // kept of pages that were sent
	Overflows uint64         `json:"overflows"`        // checkpoints of this save too large for the memory limit
	PeakSpool int64          `json:"peak_spool_bytes"`

	// Over the last 1024 checkpoints, without the first.
	PauseMedian Downtime      `json:"pause_median"`
	PauseWorst  Downtime      `json:"pause_worst"`
	AckMedian   time.Duration `json:"ack_median_ns"` // from resume to ack; of strict ones, from the capture
	BytesMedian uint64        `json:"bytes_median"`  // per checkpoint
	WireMedian  uint64        `json:"wire_median"`   // that on the wire

	// PauseSum and AckSum are over all checkpoints since the session began, without first ones: two
	// of them give the mean of the time between.
	PauseSum Downtime      `json:"pause_sum"`
	AckSum   time.Duration `json:"ack_sum_ns"`

	// Holding: the domain is paused until the backup has acknowledged a checkpoint,
	// since it writes more than the next one can carry. Holds and HeldTime count
	// that since the session began.
	Holding  bool          `json:"holding"`
	Holds    uint64        `json:"holds"`
	HeldTime time.Duration `json:"held_time_ns"`

	// Pacing is as it is in effect. Window is how long the domain has to have run now
	// before its output ends an epoch, in the mode "event". Watching is what finds out
	// that it has sent something.
	Pacing   xlft.Pacing   `json:"pacing"`
	Window   time.Duration `json:"window_ns"`
	Watching string        `json:"watching,omitempty"`

	HeldBytes uint64 `json:"held_bytes"`
	HeldLimit uint64 `json:"held_limit_bytes"`

	Disks []xlft.DiskProgress `json:"disks,omitempty"`
}

// statusBox holds the status and what it is computed from.
type statusBox struct {
	mu     sync.Mutex
	v      Status
	pauses ring[Downtime]
	acks   ring[time.Duration]
	bytes  ring[uint64]
	wired  ring[uint64]
	// heldSince is since when the domain waits for the backup, if it does.
	heldSince time.Time
	changed   chan struct{} // closed and replaced when state or epoch change
}

func (b *statusBox) init() { b.changed, b.v.Reasons = make(chan struct{}), map[Why]uint64{} }

func (b *statusBox) set(f func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	state, epoch, holding := b.v.State, b.v.Epoch, b.v.Holding
	f(&b.v)
	switch now := time.Now(); {
	case b.v.Holding && !holding:
		b.v.Holds++
		b.heldSince = now
	case holding && !b.v.Holding:
		b.v.HeldTime += now.Sub(b.heldSince)
	}
	// Counters change with every piece sent. Whoever waits for a change looks
	// at the gate too, and must not ask the kernel that often.
	if b.v.State != state || b.v.Epoch != epoch {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

func (b *statusBox) lastError() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.v.LastError
}

// paused counts a checkpoint's downtime.
func (b *statusBox) paused(epoch uint64, d Downtime) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if epoch > 1 {
		b.pauses.add(d)
		b.v.PauseSum.add(d)
	}
}

// acked counts an ack of a checkpoint that has waited for it since sent.
func (b *statusBox) acked(epoch uint64, why Why, sent time.Time, sp *spool) {
	now := time.Now()
	peak, overflows := sp.usage()
	b.set(func(v *Status) {
		v.LastAck = now
		v.Checkpoints++
		v.Reasons[why]++
		v.PeakSpool, v.Overflows = peak, overflows
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if epoch > 1 {
		b.acks.add(now.Sub(sent))
		b.v.AckSum += now.Sub(sent)
	}
}

// sent counts what left for the backup; a piece has the counts of its epoch up
// to itself.
func (b *statusBox) sent(epoch uint64, p piece, wired uint64, kept int64) {
	b.set(func(v *Status) {
		v.PageCache = kept
		if epoch == 1 {
			v.SyncBytes = p.stats.Bytes
		}
		if p.last {
			v.PagesSent += p.stats.Pages
			v.BytesSent += p.stats.Bytes
			v.WireBytes += wired
		}
	})
	if epoch > 1 && p.last {
		b.mu.Lock()
		b.bytes.add(p.stats.Bytes)
		b.wired.add(wired)
		b.mu.Unlock()
	}
}

// Status returns a snapshot.
func (s *Session) Status() Status {
	s.init()
	held, limit, err := s.Gates.Held()
	b := &s.status
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.v
	if v.Holding {
		v.HeldTime += time.Since(b.heldSince)
	}
	v.Reasons = maps.Clone(v.Reasons)
	v.Pacing, v.Window = s.trigger.paced()
	if s.Health != nil {
		v.Health = s.Health()
	}
	if s.Watching != nil {
		v.Watching = s.Watching()
	}
	v.Domain, v.Peer, v.Arbiter = s.Domain, s.Peer, s.Arbiter.String()
	if err == nil {
		v.HeldBytes, v.HeldLimit = held, limit
	}
	if d := s.Gates.Disks; d != nil {
		v.Disks = d.Progress()
	}
	v.PauseMedian, v.PauseWorst = medianDowntime(b.pauses.all), worstDowntime(b.pauses.all)
	v.AckMedian, v.BytesMedian, v.WireMedian = median(b.acks.all), median(b.bytes.all), median(b.wired.all)
	return v
}

// Protected is Status's, and waits for nothing.
func (s *Session) Protected() bool {
	s.init()
	s.status.mu.Lock()
	defer s.status.mu.Unlock()
	return s.status.v.Protected
}

// Changed is closed when the state or the newest acked epoch changes after the
// call.
func (s *Session) Changed() <-chan struct{} {
	s.init()
	s.status.mu.Lock()
	defer s.status.mu.Unlock()
	return s.status.changed
}

package primary

import (
	"slices"
	"sync"
	"time"
)

// Pause is how long one checkpoint stopped the domain, in parts.
type Pause struct {
	Suspend time.Duration `json:"suspend_ns"` // from asking until it stood still
	Seal    time.Duration `json:"seal_ns"`
	Capture time.Duration `json:"capture_ns"`
	Resume  time.Duration `json:"resume_ns"`
	Total   time.Duration `json:"total_ns"`
}

// Status is what an operator sees of a Session.
type Status struct {
	Domain     string    `json:"domain"`
	Peer       string    `json:"peer"`
	Arbiter    string    `json:"arbiter"`
	State      string    `json:"state"`
	Protected  bool      `json:"protected"`
	Since      time.Time `json:"since"`
	Generation uint64    `json:"generation"`
	LastError  string    `json:"last_error,omitempty"`

	Epoch     uint64    `json:"epoch"` // newest acked
	LastAck   time.Time `json:"last_ack"`
	SeedBytes uint64    `json:"seed_bytes"` // sent of the first checkpoint
	SeedTotal uint64    `json:"seed_total"` // its size, estimated

	Checkpoints uint64 `json:"checkpoints"` // acked since the session began
	PagesSent   uint64 `json:"pages_sent"`
	BytesSent   uint64 `json:"bytes_sent"`
	Overflows   uint64 `json:"overflows"` // checkpoints of this save too large for the memory limit
	PeakSpool   int64  `json:"peak_spool_bytes"`

	// Over the last checkpoints, at most pausesKept of them.
	PauseMedian Pause         `json:"pause_median"`
	PauseWorst  Pause         `json:"pause_worst"`
	AckMedian   time.Duration `json:"ack_median_ns"` // from resume to ack
	BytesMedian uint64        `json:"bytes_median"`  // per checkpoint, without the first

	HeldBytes uint64 `json:"held_bytes"`
	HeldLimit uint64 `json:"held_limit_bytes"`

	Disks []DiskProgress `json:"disks,omitempty"`
}

const pausesKept = 1024

// statusBox holds the status and what it is computed from.
type statusBox struct {
	mu      sync.Mutex
	v       Status
	begun   time.Time // of the open epoch; zero if none can be ended
	pauses  ring[Pause]
	acks    ring[time.Duration]
	bytes   ring[uint64]
	resumed time.Time
	changed chan struct{} // closed and replaced when state or epoch change
}

func (b *statusBox) init() { b.changed = make(chan struct{}) }

func (b *statusBox) set(f func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	state, epoch := b.v.State, b.v.Epoch
	f(&b.v)
	b.v.Protected = b.v.State == Protected.String() || b.v.State == HandingOver.String()
	// Counters change with every piece sent; whoever waits must not look, and
	// ask the kernel, as often.
	if b.v.State != state || b.v.Epoch != epoch {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// stepped takes over what the machine decided. An epoch that was opened stays
// open only while the domain is protected.
func (b *statusBox) stepped(state State, epoch, generation uint64) {
	b.set(func(v *Status) { v.State, v.Epoch, v.Generation = state.String(), epoch, generation })
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.v.Protected {
		b.begun = time.Time{}
	}
}

// paused counts a pause that ended at now.
func (b *statusBox) paused(epoch uint64, p Pause, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resumed = now
	b.begun = time.Time{}
	if epoch > 1 {
		b.pauses.add(p)
	}
}

// acked opens the next epoch for triggers.
func (b *statusBox) acked(epoch uint64, sp *spool) {
	now := time.Now()
	peak, overflows := sp.usage()
	b.set(func(v *Status) {
		v.LastAck = now
		v.Checkpoints++
		v.PeakSpool, v.Overflows = peak, overflows
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	// The epoch began when the domain resumed, not when the ack came.
	b.begun = b.resumed
	if epoch > 1 {
		b.acks.add(now.Sub(b.resumed))
	}
}

// openEpoch returns when the epoch that may be ended now began.
func (b *statusBox) openEpoch() (begun time.Time, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.begun, !b.begun.IsZero() && b.v.State == Protected.String()
}

// sent counts what left for the backup; a piece has the counts of its epoch up
// to itself.
func (b *statusBox) sent(epoch uint64, p piece) {
	b.set(func(v *Status) {
		if epoch == 1 {
			v.SeedBytes = p.stats.Bytes
		}
		if p.last {
			v.PagesSent += p.stats.Pages
			v.BytesSent += p.stats.Bytes
		}
	})
	if epoch > 1 && p.last {
		b.mu.Lock()
		b.bytes.add(p.stats.Bytes)
		b.mu.Unlock()
	}
}

// Status returns what is so now.
func (s *Session) Status() Status {
	s.init()
	held, limit, err := s.Output.Held()
	b := &s.status
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.v
	v.Domain, v.Peer, v.Arbiter = s.Domain, s.Peer, s.Arbiter.String()
	if err == nil {
		v.HeldBytes, v.HeldLimit = held, limit
	}
	if s.Disks != nil {
		v.Disks = s.Disks.Progress()
	}
	v.PauseMedian, v.PauseWorst = medianPause(b.pauses.all), worstPause(b.pauses.all)
	v.AckMedian, v.BytesMedian = median(b.acks.all), median(b.bytes.all)
	return v
}

// Changed is closed when the state or the newest acked epoch changes after the
// call.
func (s *Session) Changed() <-chan struct{} {
	s.init()
	s.status.mu.Lock()
	defer s.status.mu.Unlock()
	return s.status.changed
}

func medianPause(all []Pause) Pause {
	return Pause{
		Suspend: medianOf(all, func(p Pause) time.Duration { return p.Suspend }),
		Seal:    medianOf(all, func(p Pause) time.Duration { return p.Seal }),
		Capture: medianOf(all, func(p Pause) time.Duration { return p.Capture }),
		Resume:  medianOf(all, func(p Pause) time.Duration { return p.Resume }),
		Total:   medianOf(all, func(p Pause) time.Duration { return p.Total }),
	}
}

func worstPause(all []Pause) Pause {
	if len(all) == 0 {
		return Pause{}
	}
	return slices.MaxFunc(all, func(a, b Pause) int { return int(a.Total - b.Total) })
}

func medianOf[T any](all []T, f func(T) time.Duration) time.Duration {
	vs := make([]time.Duration, len(all))
	for i, v := range all {
		vs[i] = f(v)
	}
	return median(vs)
}

func median[T time.Duration | uint64](all []T) T {
	if len(all) == 0 {
		return 0
	}
	vs := slices.Clone(all)
	slices.Sort(vs)
	return vs[len(vs)/2]
}

// A ring keeps the last pausesKept values, in no order.
type ring[T any] struct {
	all []T
	at  int
}

func (r *ring[T]) add(v T) {
	if len(r.all) < pausesKept {
		r.all = append(r.all, v)
		return
	}
	r.all[r.at] = v
	r.at = (r.at + 1) % pausesKept
}

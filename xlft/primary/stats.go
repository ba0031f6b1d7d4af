package primary

import (
	"slices"
	"time"
)

// Downtime is how long one checkpoint stopped the domain, in parts.
type Downtime struct {
	Suspend time.Duration `json:"suspend_ns"` // from the request until the domain stood still
	Seal    time.Duration `json:"seal_ns"`
	Capture time.Duration `json:"capture_ns"`
	Ack     time.Duration `json:"ack_ns"` // until its output was let out, of a strict one
	Resume  time.Duration `json:"resume_ns"`
	Total   time.Duration `json:"total_ns"`
}

func (d *Downtime) add(e Downtime) {
	d.Suspend += e.Suspend
	d.Seal += e.Seal
	d.Capture += e.Capture
	d.Ack += e.Ack
	d.Resume += e.Resume
	d.Total += e.Total
}

// samples is how many checkpoints the medians in a Status are of, at most.
const samples = 1024

// A ring keeps the last values, in no order.
type ring[T any] struct {
	all []T
	at  int
}

func (r *ring[T]) add(v T) {
	if len(r.all) < samples {
		r.all = append(r.all, v)
		return
	}
	r.all[r.at] = v
	r.at = (r.at + 1) % samples
}

// medianDowntime returns the median of each part: the parts need not add up to
// the total.
func medianDowntime(all []Downtime) Downtime {
	return Downtime{
		Suspend: medianOf(all, func(d Downtime) time.Duration { return d.Suspend }),
		Seal:    medianOf(all, func(d Downtime) time.Duration { return d.Seal }),
		Capture: medianOf(all, func(d Downtime) time.Duration { return d.Capture }),
		Ack:     medianOf(all, func(d Downtime) time.Duration { return d.Ack }),
		Resume:  medianOf(all, func(d Downtime) time.Duration { return d.Resume }),
		Total:   medianOf(all, func(d Downtime) time.Duration { return d.Total }),
	}
}

func worstDowntime(all []Downtime) Downtime {
	if len(all) == 0 {
		return Downtime{}
	}
	return slices.MaxFunc(all, func(a, b Downtime) int { return int(a.Total - b.Total) })
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

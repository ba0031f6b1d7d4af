//go:build lab

package scenario

import (
	"fmt"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/probe"
)

// A talk is the guest sending numbered frames of every kind while the cables of both hosts are watched.
type talk struct {
	fx    *fixture
	from  uint64 // number of the last frame before
	cable *lab.Capture
}

// talk makes the guest send so many frames of each kind a second.
func (fx *fixture) talk(rate int) *talk {
	fx.t.Helper()
	k := &talk{fx: fx}
	var err error
	k.cable, err = fx.Capture(lab.SentBy(fx.guest))
	check(fx.t, err)
	k.from, _, err = fx.ask().Chattered()
	check(fx.t, err)
	check(fx.t, fx.ask().Chatter(rate))
	return k
}

// A heard is what the cables carried of a talk.
type heard struct {
	frames []lab.Frame // all of the guest's, in the order of time
	probes []spoken
	from   uint64 // number of the last frame before the talk
	to     uint64 // and of the talk's last, by the guest's own count
	since  uint64 // the first after the guest's device last got its carrier
}

type spoken struct {
	probe.Probe
	host *lab.Host
	at   time.Time
}

// end makes the guest stop and returns all that was heard, once its last frame has been.
func (k *talk) end() heard {
	k.fx.t.Helper()
	check(k.fx.t, k.fx.ask().Chatter(0))
	// The answer follows the frames through the same gate, so they are out when it is here.
	last, since, err := k.fx.ask().Chattered()
	check(k.fx.t, err)
	frames, err := k.cable.Stop()
	check(k.fx.t, err)
	h := heard{frames: frames, from: k.from, to: last, since: since}
	for _, f := range frames {
		if p, ok := f.Probe(); ok && p.Seq > h.from {
			h.probes = append(h.probes, spoken{p, f.Host, f.Time})
		}
	}
	return h
}

// complete checks that every frame that the guest sent was heard, once, of every kind, and in order. Between kinds the
// order may change on the way: a host's own queue in front of its cable is fair to all flows.
func (fx *fixture) complete(h heard) {
	fx.t.Helper()
	if n := h.missing(); len(n) > 0 {
		fx.t.Errorf("%d of the guest's frames %d to %d were not heard: %v", len(n), h.from+1, h.to, n[:min(len(n), 10)])
	}
	kinds, last, wrong := map[probe.Proto]int{}, map[probe.Proto]uint64{}, 0
	for _, s := range h.probes {
		kinds[s.Proto]++
		if s.Seq <= last[s.Proto] {
			if wrong++; wrong <= 5 {
				fx.t.Errorf("%v frame %d from %s after %d", s.Proto, s.Seq, s.host.Name(), last[s.Proto])
			}
		}
		last[s.Proto] = max(last[s.Proto], s.Seq)
	}
	for _, p := range probe.Protos {
		if kinds[p] == 0 {
			fx.t.Errorf("no %v frame was heard", p)
		}
	}
	fx.t.Logf("frames %d to %d: heard %s; %d missing, %d out of order or twice", h.from+1, h.to, countKinds(kinds), len(h.missing()), wrong)
}

// missing returns the numbers of the frames that were sent and not heard.
func (h heard) missing() (numbers []uint64) {
	got := map[uint64]bool{}
	for _, s := range h.probes {
		got[s.Seq] = true
	}
	for n := h.from + 1; n <= h.to; n++ {
		if !got[n] {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

func countKinds(kinds map[probe.Proto]int) string {
	s := ""
	for _, p := range probe.Protos {
		s += fmt.Sprintf("%d %v, ", kinds[p], p)
	}
	return s[:len(s)-2]
}

// between returns the guest's frames, of any kind, that left a host in a span of time.
func (h heard) between(host *lab.Host, from, to time.Time) (frames []lab.Frame) {
	for _, f := range h.frames {
		if f.Host == host && f.Time.After(from) && f.Time.Before(to) {
			frames = append(frames, f)
		}
	}
	return frames
}

// oneVoice checks what was heard of a guest that moved: after its first frame from the new host none came from the old
// one, and no frame that the old one let out is of a time that the guest at the new one has not lived through.
func (fx *fixture) oneVoice(h heard, before, after *lab.Host) {
	fx.t.Helper()
	var lastOld, firstNew time.Time
	for _, f := range h.frames {
		switch {
		case f.Host == before:
			lastOld = f.Time
		case firstNew.IsZero():
			firstNew = f.Time
		}
	}
	switch {
	case lastOld.IsZero() || firstNew.IsZero():
		fx.t.Errorf("heard of %s: %v, of %s: %v", before.Name(), !lastOld.IsZero(), after.Name(), !firstNew.IsZero())
	case lastOld.After(firstNew):
		fx.t.Errorf("both spoke: %s until %v after %s began", before.Name(), round(lastOld.Sub(firstNew)), after.Name())
		for _, f := range h.between(before, firstNew, lastOld.Add(1)) {
			fx.t.Logf("%v later: % x", round(f.Time.Sub(firstNew)), f.Data[:min(len(f.Data), 60)])
		}
	default:
		fx.t.Logf("%s was silent for %v when %s began to speak", before.Name(), round(firstNew.Sub(lastOld)), after.Name())
	}
	var old, young uint64 // last number from the old host, first from the new
	for _, s := range h.probes {
		switch {
		case s.host == before:
			old = max(old, s.Seq)
		case young == 0 || s.Seq < young:
			young = s.Seq
		}
	}
	fx.t.Logf("probes: the last from %s is %d, the first from %s is %d", before.Name(), old, after.Name(), young)
	if young != 0 && young <= old {
		fx.t.Errorf("frames %d to %d left %s before their epoch was acked: the guest sent them again from %s",
			young, old, before.Name(), after.Name())
	}
}

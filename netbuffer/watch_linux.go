package netbuffer

import (
	"errors"
	"fmt"
)

// A tap says when packets arrive at a device.
type tap interface {
	way() Way
	// arm is Watcher.Watch of a queue that is there. After an error the tap is
	// of no use any more.
	arm(queue int, first func()) error
	close()
}

// taps makes the taps of a gate. The programs of all of them share a ring.
type taps struct {
	best Way // that may be used
	ring *ring
}

func newTaps(best Way) *taps {
	if best == "" {
		best = EBPF
	}
	return &taps{best: best}
}

func (ts *taps) close() {
	if ts.ring != nil {
		ts.ring.close()
	}
}

// tap opens the best tap of a device, from the way best on. why says why it is
// not of that way. Polling has no tap.
func (ts *taps) tap(d *device, best Way) (t tap, why error) {
	switch best {
	case EBPF:
		t, err := ts.program(d)
		if err == nil {
			return t, nil
		}
		why = fmt.Errorf("no %s: %w", EBPF, err)
		fallthrough
	case PacketSocket:
		t, err := newSocketTap(d.vif)
		if err == nil {
			return t, why
		}
		why = errors.Join(why, fmt.Errorf("no %s: %w", PacketSocket, err))
	}
	return nil, why
}

// listen gives a device a tap. That none works is no error: the gate holds
// without.
func (d *device) listen(ts *taps) {
	d.taps = ts
	d.tap, d.noTap = ts.tap(d, ts.best)
}

// Watch is for Watcher. If the tap fails the next best takes its place.
func (d *device) Watch(queue int, first func()) {
	if d.ifb[queue] == nil {
		return
	}
	for d.tap != nil {
		err := d.tap.arm(queue, first)
		if err == nil {
			return
		}
		next := PacketSocket
		if d.tap.way() == PacketSocket || d.vif == nil {
			next = Polling
		}
		d.noTap = errors.Join(d.noTap, fmt.Errorf("no %s any more: %w", d.tap.way(), err))
		d.tap.close()
		var why error
		d.tap, why = d.taps.tap(d, next)
		d.noTap = errors.Join(d.noTap, why)
	}
}

// Watching is for Watcher.
func (d *device) Watching() (Way, error) {
	if d.tap == nil {
		return Polling, d.noTap
	}
	return d.tap.way(), d.noTap
}

// unlisten ends the tap.
func (d *device) unlisten() {
	if d.tap != nil {
		d.tap.close()
		d.tap = nil
	}
}

package simxen

import (
	"encoding/binary"
	"fmt"

	"xlft/diskrepl"
	"xlft/xlft"
)

// fits returns how the disk differs from what a state of the domain, by its page 0, knows of it. A write in flight may
// be on the disk or not: the domain issues it again.
func (p *Platter) fits(page []byte) error {
	busy, value := binary.LittleEndian.Uint64(page[memBusy:]), binary.LittleEndian.Uint64(page[memValue:])
	for i := range diskBlocks {
		want := binary.LittleEndian.Uint64(page[memTable+8*i:])
		got, whole := p.block(i)
		switch {
		case !whole:
			return fmt.Errorf("block %d of the disk is torn", i)
		case got != want && (busy != uint64(i)+1 || got != value):
			return fmt.Errorf("block %d of the disk has %#x, the state knows %#x (write under way: block %d, %#x)", i, got, want, int(busy)-1, value)
		}
	}
	return nil
}

// checkDisk checks P2: the state that is about to run finds the disk as it was at the checkpoint.
func (o *Outside) checkDisk(page []byte, p *Platter) {
	if page == nil {
		return
	}
	if err := p.fits(page); err != nil {
		o.Violate("P2", "the state that is to run on: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.was) > 0 {
		o.Violate("P2", "a domain runs from a disk that would forget a part if the power failed")
	}
	if p.users > 0 || p.state != xlft.UpToDate {
		o.Violate("P2", "a domain runs from a disk that is a copy (%q) with %d users", p.state, p.users)
	}
}

// A diskHistory is what a domain knew of its disk, its page 0, at the end of each epoch of a session.
type diskHistory struct {
	session  string
	epochs   map[uint64][]byte
	released uint64
}

func (o *Outside) sessionBegins(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.disks = append(o.disks, &diskHistory{session: id, epochs: map[uint64][]byte{}})
}

func (o *Outside) epochEnds(epoch uint64, page []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.disks[len(o.disks)-1].epochs[epoch] = page
}

func (o *Outside) epochReleased(epoch uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.disks[len(o.disks)-1].released = epoch
}

// session returns the newest session.
func (o *Outside) session() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.disks) == 0 {
		return ""
	}
	return o.disks[len(o.disks)-1].session
}

// CheckPromoted checks P2 for durable_ack. Suppose that both hosts lost power just now and that this host's copy is
// promoted once it is back: the copy must be the disk of the newest released epoch, or of a newer one.
func (h *Host) CheckPromoted() {
	o, p := h.outside, h.platter
	o.mu.Lock()
	n := len(o.disks)
	released := make([]uint64, n)
	for i, d := range o.disks {
		released[i] = d.released
	}
	o.mu.Unlock()

	p.mu.Lock()
	p.journal.mu.Lock()
	state, session := p.state, p.session
	var after *Platter
	var left *epochFiles
	if h.DurableAck && state == xlft.Consistent {
		after, left = &Platter{medium: p.afterPowerCut(o)}, p.journal.afterPowerCut(o)
	}
	p.journal.mu.Unlock()
	p.mu.Unlock()
	if after == nil {
		return
	}
	oldest, newest, err := diskrepl.Newest(left, after.Size())
	if err == nil && newest > 0 {
		err = diskrepl.Replay(after, left, newest)
		if h.ReplayTwice {
			diskrepl.Replay(after, left, oldest)
		}
	}
	if err != nil {
		o.Violate("P2", "promote after a power cut: %v", err)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.Promoted++
	for i, d := range o.disks[:n] {
		if d.session != session {
			continue
		}
		for e, page := range d.epochs {
			if e >= released[i] && (newest == 0 || e == newest) {
				if err = after.fits(page); err == nil {
					return
				}
			}
		}
		o.violate("P2", "promoted after a power cut, to epoch %d: not the disk of an epoch from %d on, the newest one released: %v",
			newest, released[i], err)
	}
}

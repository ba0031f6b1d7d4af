package simxen

import (
	"encoding/binary"
)

// Offsets in page 0 of what the domain knows of its disk: the write in flight (its block and its number), and the
// number that each block holds.
const (
	memBusy  = 64 // block + 1; 0: no write is in flight
	memValue = 72
	memTable = 80
)

// beginWrite enters the domain's next write in its memory. The caller holds the lock.
func (d *Domain) beginWrite(in uint64) {
	p := d.page(0)
	binary.LittleEndian.PutUint64(p[memBusy:], in%diskBlocks+1)
	binary.LittleEndian.PutUint64(p[memValue:], in|1)
}

// issue sends the write in flight to the disk, unless that was done. The answer comes later. The caller holds the lock.
func (d *Domain) issue() {
	busy := binary.LittleEndian.Uint64(d.page(0)[memBusy:])
	if busy == 0 || d.issued {
		return
	}
	d.issued, d.answered = true, false
	n := binary.LittleEndian.Uint64(d.page(0)[memValue:])
	b := make([]byte, blockSize)
	for i := 0; i < blockSize; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], n)
	}
	look := int64(n>>8) % diskBlocks
	want := binary.LittleEndian.Uint64(d.page(0)[memTable+8*look:])
	m := d.mirror
	d.host.wg.Go(func() {
		if look != int64(busy-1) {
			d.checkRead(m, look, want)
		}
		err := m.WriteAt(b, offsetOf(int(busy-1)), false)
		if err == nil && n%5 == 0 && !d.host.outside.NoFlushes {
			err = m.Flush()
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.answered = err == nil // a write that failed is issued again
		d.issued = err == nil
	})
}

// checkRead is a part of P2: the domain reads what it wrote.
func (d *Domain) checkRead(m replicatedDisk, block int64, want uint64) {
	b := make([]byte, blockSize)
	if err := m.ReadAt(b, offsetOf(int(block))); err != nil {
		return // its disk server, or its host, is gone
	}
	got := binary.LittleEndian.Uint64(b)
	d.mu.Lock()
	gone := d.gone
	d.mu.Unlock() // Outside looks at domains with its own lock held
	if got != want && !gone && !d.host.Down() {
		d.host.outside.Violate("P2", "the domain on %s reads %#x from block %d, where it wrote %#x", d.host.Name, got, block, want)
	}
}

// takeAnswer lets the program see that its write is done. The caller holds the lock, and the program runs.
func (d *Domain) takeAnswer() {
	if !d.issued || !d.answered {
		return
	}
	p := d.page(0)
	busy := binary.LittleEndian.Uint64(p[memBusy:])
	copy(p[memTable+8*(busy-1):memTable+8*busy], p[memValue:memValue+8])
	binary.LittleEndian.PutUint64(p[memBusy:], 0)
	d.issued, d.answered = false, false
}

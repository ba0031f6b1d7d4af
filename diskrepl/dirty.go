package diskrepl

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// A SyncPoint says what a copy of a disk is consistent as of: the end of an
// epoch of a session. The zero SyncPoint is none.
type SyncPoint struct {
	Session string `json:"session,omitempty"`
	Epoch   uint64 `json:"epoch,omitempty"`
}

// A dirtyLog records which chunks of a disk changed in which epoch of a
// session, for as many epochs as the backup's copy may be behind. It lives in
// memory that may outlive the process, and is correct whenever the process is
// killed.
//
//	offset  size
//	0       8     dirtyMagic
//	8       8     size of the disk
//	16      64    session, padded with zeroes; empty: nothing is recorded
//	80      48    epoch of each slot; 0: the slot is free
//	128           a bitmap for each slot, one bit for each chunk
//
// Integers are little endian.
type dirtyLog struct {
	mem   []byte
	slots int // bytes of a slot's bitmap
	open  int // slot of the open epoch; -1 if there is none
}

const (
	dirtyMagic  = 0x30746962_746c6678 // "xlftbit0"
	dirtySlots  = 6
	dirtyHeader = 128
	maxSession  = 64
)

// DirtySize returns how many bytes of memory [Mirror.Track] needs for a disk of
// so many bytes.
func DirtySize(disk int64) int64 { return dirtyHeader + dirtySlots*bitmapSize(disk) }

func bitmapSize(disk int64) int64 {
	chunks := (disk + ChunkSize - 1) / ChunkSize
	return (chunks + 63) / 64 * 8
}

// newDirtyLog returns a log in mem, which has DirtySize bytes. It continues the
// log that is there if that is of a disk of the same size.
func newDirtyLog(mem []byte, disk int64) *dirtyLog {
	d := &dirtyLog{mem: mem, slots: int(bitmapSize(disk)), open: -1}
	if binary.LittleEndian.Uint64(mem) != dirtyMagic || binary.LittleEndian.Uint64(mem[8:]) != uint64(disk) {
		clear(mem)
		binary.LittleEndian.PutUint64(mem[8:], uint64(disk))
		binary.LittleEndian.PutUint64(mem, dirtyMagic)
		return d
	}
	if d.session() != "" {
		// The process before this one may have been killed between two epochs.
		_, newest := d.span()
		d.begin(newest + 1)
	}
	return d
}

func (d *dirtyLog) session() string {
	return string(bytes.TrimRight(d.mem[16:16+maxSession], "\x00"))
}

// span returns the oldest and the newest epoch that have slots, or 0 and 0.
func (d *dirtyLog) span() (oldest, newest uint64) {
	for s := range dirtySlots {
		if e := d.epoch(s); e > 0 {
			if oldest == 0 || e < oldest {
				oldest = e
			}
			newest = max(newest, e)
		}
	}
	return oldest, newest
}

func (d *dirtyLog) epoch(slot int) uint64 { return binary.LittleEndian.Uint64(d.mem[80+8*slot:]) }

func (d *dirtyLog) setEpoch(slot int, e uint64) {
	binary.LittleEndian.PutUint64(d.mem[80+8*slot:], e)
}

func (d *dirtyLog) bitmap(slot int) []byte {
	return d.mem[dirtyHeader+slot*d.slots:][:d.slots]
}

// forget empties the log.
func (d *dirtyLog) forget() {
	clear(d.mem[16 : 16+maxSession])
	for s := range dirtySlots {
		d.setEpoch(s, 0)
	}
	d.open = -1
}

// start begins the log of a session, whose open epoch is e.
func (d *dirtyLog) start(session string, e uint64) {
	d.forget()
	if session == "" || len(session) > maxSession {
		return
	}
	d.begin(e)
	copy(d.mem[16:], session) // last, because it makes the log valid
}

// begin opens an epoch.
func (d *dirtyLog) begin(e uint64) {
	for s := range dirtySlots {
		if d.epoch(s) == 0 {
			clear(d.bitmap(s))
			d.setEpoch(s, e)
			d.open = s
			return
		}
	}
	d.forget()
}

// seal opens the epoch after e, if the log is of this session.
func (d *dirtyLog) seal(e uint64) {
	if d.open >= 0 {
		d.begin(e + 1)
	}
}

// acked says that the backup has acknowledged epoch e, so that its copy is
// never older than the epoch before.
func (d *dirtyLog) acked(e uint64) {
	for s := range dirtySlots {
		if n := d.epoch(s); n > 0 && n < e && s != d.open {
			d.setEpoch(s, 0)
		}
	}
}

// mark records that a range changes. d may be nil.
func (d *dirtyLog) mark(off, n int64) {
	if d == nil || d.open < 0 || n <= 0 {
		return
	}
	b := d.bitmap(d.open)
	for c := off / ChunkSize; c <= (off+n-1)/ChunkSize; c++ {
		b[c>>3] |= 1 << (c & 7)
	}
}

// since returns which chunks changed after a sync point. It returns false if
// that is not known.
func (d *dirtyLog) since(p SyncPoint) (bitmap []byte, ok bool) {
	if p.Session == "" || p.Session != d.session() || d.open < 0 {
		return nil, false
	}
	oldest, newest := d.span()
	if p.Epoch+1 < oldest || p.Epoch >= newest {
		return nil, false
	}
	all := make([]byte, d.slots)
	for s := range dirtySlots {
		if d.epoch(s) > p.Epoch {
			for i, b := range d.bitmap(s) {
				all[i] |= b
			}
		}
	}
	return all, true
}

// count returns how many bits of a bitmap are set.
func count(bitmap []byte) (n int64) {
	for _, b := range bitmap {
		n += int64(bits.OnesCount8(b))
	}
	return n
}

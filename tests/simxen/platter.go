package simxen

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"syscall"

	"xlft/diskrepl"
	"xlft/xlft"
)

// The layout of a domain's disk. A block repeats one number, so that a torn block shows.
const (
	diskBlocks = 24
	blockSize  = 512
	diskChunks = 6 // chunks of the first copy, several so that some can be left out
	diskVDev   = "xvda"
)

// offsetOf is the offset of a block on the disk.
func offsetOf(block int) int64 {
	return int64(block%diskChunks)*diskrepl.ChunkSize + int64(block/diskChunks)*blockSize
}

// A Platter is a host's disk for the domain. A power cut may lose any part of what was not flushed.
type Platter struct {
	*medium
	users   int
	state   xlft.DiskState
	mark    diskrepl.SyncPoint
	failed  string
	data    xlft.DataGen
	session string // session that a Consistent copy is of
	journal *epochFiles
}

// give returns the generation of the disk's data, which a copy is about to get.
func (p *Platter) give() xlft.DataGen {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data.ID == "" {
		p.data = p.data.Next()
	}
	p.data.Given = true
	return p.data
}

// renew makes a new generation, if a copy has the present one: the domain goes on to write to this disk.
func (p *Platter) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data.Given {
		p.data = p.data.Next()
	}
}

const sectorSize = 512

type medium struct {
	mu   sync.Mutex
	b    []byte
	was  map[int64][][]byte // the former contents of unflushed sectors: after a power cut a sector has one of them, or b
	fail bool
}

func newPlatter() *Platter {
	return &Platter{medium: newMedium(), journal: newEpochFiles()}
}

func newMedium() *medium {
	return &medium{b: make([]byte, diskChunks*diskrepl.ChunkSize), was: map[int64][][]byte{}}
}

// Share replaces the hosts' disks by one disk that all of them see.
func Share(hosts ...*Host) {
	for _, h := range hosts {
		h.platter = &Platter{medium: hosts[0].platter.medium, journal: newEpochFiles()}
		h.held = newEpochFiles()
	}
}

// Fail makes every write fail, or lets writes succeed again.
func (p *Platter) Fail(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = on
}

func (p *Platter) Size() int64 { return int64(len(p.b)) }

func (p *Platter) ReadAt(b []byte, off int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	copy(b, p.b[off:])
	return nil
}

func (p *Platter) WriteAt(b []byte, off int64, fua bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail {
		return syscall.EIO
	}
	for at := off - off%sectorSize; at < off+int64(len(b)); at += sectorSize {
		if fua {
			delete(p.was, at)
		} else {
			p.was[at] = append(p.was[at], bytes.Clone(p.b[at:at+sectorSize]))
		}
	}
	copy(p.b[off:], b)
	return nil
}

// afterPowerCut returns what the disk may hold when power is back. The caller holds the lock.
func (p *medium) afterPowerCut(o *Outside) *medium {
	m := newMedium()
	copy(m.b, p.b)
	for _, at := range slices.Sorted(maps.Keys(p.was)) {
		if n := o.Rand() % uint64(len(p.was[at])+1); n > 0 {
			copy(m.b[at:], p.was[at][n-1])
		}
	}
	return m
}

func (p *Platter) Zero(off, n int64, _, fua bool) error { return p.WriteAt(make([]byte, n), off, fua) }

func (p *Platter) Trim(off, n int64, fua bool) error { return p.WriteAt(make([]byte, n), off, fua) }

func (p *Platter) Flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.was)
	return nil
}

// block returns the number that a block holds, and false if the block is torn.
func (p *Platter) block(i int) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.b[offsetOf(i):][:blockSize]
	n := binary.LittleEndian.Uint64(b)
	for ; len(b) > 0; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != n {
			return n, false
		}
	}
	return n, true
}

// Disk returns the host's disk for the domain.
func (h *Host) Disk() *Platter { return h.platter }

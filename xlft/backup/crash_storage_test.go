package backup

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Of the storage of the crash matrix.
const (
	sectorSize = 512
	crashDisk  = 3*65536 + 13*sectorSize // three chunks of a first copy, and a part of one
	sectors    = crashDisk / sectorSize
	torn       = ^uint64(0) // the value of a sector that is not one write's
)

var (
	errNoPower = errors.New("crash matrix: the host or the process is gone")
	errMedium  = errors.New("crash matrix: medium error")
	errFull    = errors.New("crash matrix: no space left")
)

// A chance is a source of randomness that goroutines share.
type chance struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (c *chance) n(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.IntN(n)
}

// in reports true once in n times.
func (c *chance) in(n int) bool { return c.n(n) == 0 }

// A pending sector is in the page cache and not on the storage.
type pending struct {
	sector int
	value  uint64
}

// A medium is a disk behind a page cache. A sector's content is a value: each of
// its words.
type medium struct {
	cache, stable []uint64
	unread        []bool // on the storage; a write mends it
	fresh         []bool // in the cache, whatever the storage has
	dirty         []pending
	stuck         []bool // what is written there is lost until the page cache forgets it
	weak          bool   // nothing can be written back
	unseen        bool   // an error has to be reported
	full          bool   // writes fail
}

func newMedium() *medium {
	return &medium{cache: make([]uint64, sectors), stable: make([]uint64, sectors), unread: make([]bool, sectors), fresh: make([]bool, sectors), stuck: make([]bool, sectors)}
}

// writeBack is what the kernel does by itself, with the oldest n pending sectors.
func (m *medium) writeBack(n int) {
	for _, p := range m.dirty[:n] {
		switch {
		case m.weak:
			m.unseen, m.stuck[p.sector] = true, true
		case !m.stuck[p.sector]:
			m.stable[p.sector], m.unread[p.sector] = p.value, false
		}
	}
	m.dirty = slices.Clone(m.dirty[n:])
}

// afterPowerCut returns what is left: of what was pending any part, by sectors,
// and of a sector that was being written perhaps nothing that can be read.
func (m *medium) afterPowerCut(c *chance) *medium {
	left := newMedium()
	copy(left.stable, m.stable)
	copy(left.unread, m.unread)
	survive := []int{0, 1, 50, 95, 100}[c.n(5)]
	for _, p := range m.dirty {
		if m.stuck[p.sector] || m.weak {
			continue
		}
		switch {
		case c.n(100) < survive:
			left.stable[p.sector], left.unread[p.sector] = p.value, false
		case c.in(40):
			left.unread[p.sector] = true
		}
	}
	copy(left.cache, left.stable)
	return left
}

// A host is one of the two.
type host struct {
	name   string
	chance *chance

	mu     sync.Mutex
	boots  int
	down   bool
	cut    int      // storage operations until its power is cut; 0: it is not
	atCut  []func() // with the lock held
	m      *medium
	files  *crashFiles
	record diskRecordOf
}

func newHost(name string, c *chance) *host {
	h := &host{name: name, chance: c, m: newMedium()}
	h.files = &crashFiles{m: map[uint64]*crashFile{}}
	return h
}

// powerCut ends all that the host does. It is called with the lock held.
func (h *host) powerCut() {
	if h.down {
		return
	}
	h.down, h.cut = true, 0
	h.m = h.m.afterPowerCut(h.chance)
	h.files = h.files.afterPowerCut(h.chance)
	for _, f := range h.atCut {
		f()
	}
	h.atCut = nil
}

func (h *host) boot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		h.down = false
		h.boots++
	}
}

func (h *host) isDown() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down
}

// A hand is what a process has of its host's storage. It has no effect after the
// process or the host is gone.
type hand struct {
	*host
	boots  int
	killed bool // guarded by the host's lock
}

func (h *host) hand() *hand {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &hand{host: h, boots: h.boots}
}

func (h *hand) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.killed = true
}

// do does an operation of the storage, at which the host's power may be cut: then
// it is done half way, not at all or whole.
func (h *hand) do(half, whole func() error) error {
	time.Sleep(time.Duration(h.chance.n(40)) * time.Microsecond)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down || h.killed || h.boots != h.host.boots {
		return errNoPower
	}
	if h.cut > 0 {
		if h.cut--; h.cut == 0 {
			switch {
			case h.chance.in(3):
				whole()
			case half != nil && h.chance.in(2):
				half()
			}
			h.powerCut()
			return errNoPower
		}
	}
	if n := len(h.m.dirty); n > 0 && h.chance.in(8) {
		h.m.writeBack(h.chance.n(n + 1))
	}
	return whole()
}

// A crashDevice is a host's disk as a process has it open.
type crashDevice struct{ *hand }

func (d crashDevice) Size() int64 { return crashDisk }

func (d crashDevice) read(p []byte, off int64, from []uint64, bad func(int) bool) error {
	for i := range len(p) / sectorSize {
		s := int(off)/sectorSize + i
		if bad(s) {
			return errMedium
		}
		for at := i * sectorSize; at < (i+1)*sectorSize; at += 8 {
			binary.LittleEndian.PutUint64(p[at:], from[s])
		}
	}
	return nil
}

func (d crashDevice) ReadAt(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down || d.killed || d.boots != d.host.boots {
		return errNoPower
	}
	return d.read(p, off, d.m.cache, func(s int) bool { return d.m.unread[s] && !d.m.fresh[s] })
}

func (d crashDevice) ReadStable(p []byte, off int64) error {
	return d.do(nil, func() error {
		d.m.writeBack(len(d.m.dirty))
		return d.read(p, off, d.m.stable, func(s int) bool { return d.m.unread[s] })
	})
}

func (d crashDevice) Forget(off, n int64) error {
	return d.do(nil, func() error {
		if len(d.m.dirty) > 0 {
			return nil
		}
		for s := int(off) / sectorSize; s < int(off+n)/sectorSize; s++ {
			d.m.cache[s], d.m.fresh[s], d.m.stuck[s] = d.m.stable[s], false, false
		}
		return nil
	})
}

func (d crashDevice) WriteAt(p []byte, off int64, fua bool) error {
	values := make([]uint64, len(p)/sectorSize)
	for i := range values {
		values[i] = sectorValue(p[i*sectorSize : (i+1)*sectorSize])
	}
	return d.put(int(off)/sectorSize, values, fua)
}

// sectorValue returns the value of a sector's content.
func sectorValue(b []byte) uint64 {
	v := binary.LittleEndian.Uint64(b)
	for at := 8; at < sectorSize; at += 8 {
		if binary.LittleEndian.Uint64(b[at:]) != v {
			return torn
		}
	}
	return v
}

// put writes sectors.
func (d crashDevice) put(at int, values []uint64, fua bool) error {
	some := func(n int) error {
		if d.m.full {
			return errFull
		}
		for i, v := range values[:n] {
			s := at + i
			d.m.cache[s], d.m.fresh[s] = v, true
			d.m.dirty = append(d.m.dirty, pending{s, v})
		}
		return nil
	}
	return d.do(func() error { return some(d.chance.n(len(values) + 1)) }, func() error {
		if err := some(len(values)); err != nil || !fua {
			return err
		}
		return d.flush()
	})
}

func (d crashDevice) Zero(off, n int64, _, fua bool) error {
	return d.put(int(off)/sectorSize, make([]uint64, n/sectorSize), fua)
}

func (d crashDevice) Trim(off, n int64, fua bool) error { return d.Zero(off, n, false, fua) }

func (d crashDevice) Flush() error {
	return d.do(func() error {
		d.m.writeBack(d.chance.n(len(d.m.dirty) + 1))
		return nil
	}, d.flush)
}

func (d crashDevice) flush() error {
	d.m.writeBack(len(d.m.dirty))
	if d.m.unseen {
		d.m.unseen = false
		return errMedium
	}
	return nil
}

// image returns what a domain would read, and which sectors it could not.
func (m *medium) image() (values []uint64, unread []bool) {
	values, unread = slices.Clone(m.cache), make([]bool, sectors)
	for s := range unread {
		unread[s] = m.unread[s] && !m.fresh[s]
	}
	return values, unread
}

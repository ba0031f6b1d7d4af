package simxen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"xlft/diskrepl"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/wire"
)

// A domain's disk has so many blocks of so many bytes; a block holds one number
// again and again, so that half a block shows.
const (
	diskBlocks = 24
	blockSize  = 512
	diskChunks = 6 // of the first copy, so that it has something to leave out
	diskVDev   = "xvda"
)

// place is where a block is.
func place(block int) int64 {
	return int64(block%diskChunks)*diskrepl.ChunkSize + int64(block/diskChunks)*blockSize
}

// A Platter is a host's disk. Of what was not flushed any part is gone when the
// power fails.
type Platter struct {
	*medium
	users   int
	state   xlft.DiskState
	mark    diskrepl.SyncPoint
	session string // of which a DiskReplica is
	journal *epochFiles
}

const sectorSize = 512

type medium struct {
	mu   sync.Mutex
	b    []byte
	was  map[int64][][]byte // what unsaved sectors may have when the power fails, but for b
	fail bool
}

func newPlatter() *Platter {
	return &Platter{medium: newMedium(), journal: newEpochFiles()}
}

func newMedium() *medium {
	return &medium{b: make([]byte, diskChunks*diskrepl.ChunkSize), was: map[int64][][]byte{}}
}

// Share makes the hosts' disks one that all of them see.
func Share(hosts ...*Host) {
	for _, h := range hosts {
		h.platter = &Platter{medium: hosts[0].platter.medium, journal: newEpochFiles()}
		h.held = newEpochFiles()
	}
}

// A replicatedDisk is a *diskrepl.Mirror or a *diskrepl.Shared.
type replicatedDisk interface {
	diskrepl.Device
	Attach(io.ReadWriteCloser, diskrepl.Options) (*diskrepl.Link, error)
	Stop()
}

// newMirror returns the host's disk in the hands of a new disk server.
func (h *Host) newMirror() replicatedDisk {
	if h.held == nil {
		return diskrepl.NewMirror(h.platter)
	}
	m, err := diskrepl.NewShared(powered{h.platter, h}, h.held)
	if err != nil {
		h.outside.Violate("P5", "a disk server on %s can't start: %v", h.Name, err)
		return diskrepl.NewMirror(h.platter)
	}
	return m
}

// powered is shared storage as a host sees it while it has power.
type powered struct {
	*Platter
	h *Host
}

func (d powered) do(f func() error) error {
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	if d.h.down {
		return errDead
	}
	return f()
}

func (d powered) WriteAt(b []byte, off int64, fua bool) error {
	// Storage that hosts share is slow at times.
	r := d.h.outside.Rand()
	slow := time.Duration(r%8) * time.Millisecond
	if r>>32%10 == 0 {
		slow *= 10
	}
	time.Sleep(slow)
	return d.do(func() error { return d.Platter.WriteAt(b, off, fua) })
}
func (d powered) Zero(off, n int64, _, fua bool) error { return d.WriteAt(make([]byte, n), off, fua) }
func (d powered) Trim(off, n int64, fua bool) error    { return d.WriteAt(make([]byte, n), off, fua) }

// disk returns the domain's disk as its disk server has it now.
func (d *Domain) disk() replicatedDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mirror
}

// shared returns the disk if both hosts see it, or nil.
func (d *Domain) shared() *diskrepl.Shared {
	s, _ := d.disk().(*diskrepl.Shared)
	return s
}

// RestartDisk kills the domain's disk server, and starts another.
func (d *Domain) RestartDisk() {
	d.disk().Stop()
	if d.host.held != nil {
		d.host.held.interrupt(d.host.outside)
	}
	m := d.host.newMirror()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		m.Stop()
		return
	}
	d.mirror = m
	if lost := d.diskLost; lost != nil {
		d.host.wg.Go(func() { lost(errors.New("simxen: the disk server died")) })
		d.diskLost = nil
	}
}

// Fail makes every write fail, or ends that.
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

// afterPowerCut is what the disk may be when the power came back. It is called
// with the lock.
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
func (p *Platter) Trim(off, n int64, fua bool) error    { return p.WriteAt(make([]byte, n), off, fua) }

func (p *Platter) Flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.was)
	return nil
}

// block returns what a block holds; false if it is torn.
func (p *Platter) block(i int) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.b[place(i):][:blockSize]
	n := binary.LittleEndian.Uint64(b)
	for ; len(b) > 0; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != n {
			return n, false
		}
	}
	return n, true
}

// LeakTo breaks P2: what the domain writes is on that other disk at once.
func (d *Domain) LeakTo(p *Platter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mirror = diskrepl.NewMirror(leak{d.host.platter, p})
}

type leak struct {
	*Platter
	to *Platter
}

func (l leak) WriteAt(b []byte, off int64, fua bool) error {
	l.to.WriteAt(b, off, true)
	return l.Platter.WriteAt(b, off, fua)
}

// Disk is the host's platter for the domain.
func (h *Host) Disk() *Platter { return h.platter }

// What the domain keeps of its disk in page 0: the block of a write under way,
// its number, and what each block holds.
const (
	memBusy  = 64 // block + 1; 0: no write is under way
	memValue = 72
	memTable = 80
)

// beginWrite makes the domain's next write known in its memory. It is called
// with the lock.
func (d *Domain) beginWrite(in uint64) {
	p := d.page(0)
	binary.LittleEndian.PutUint64(p[memBusy:], in%diskBlocks+1)
	binary.LittleEndian.PutUint64(p[memValue:], in|1)
}

// issue gives the disk the write that is under way, if there is one that was
// not given. It is called with the lock; the answer comes when it comes.
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
		err := m.WriteAt(b, place(int(busy-1)), false)
		if err == nil && n%5 == 0 {
			err = m.Flush()
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.answered = err == nil // one that failed is tried again
		d.issued = err == nil
	})
}

// checkRead is P2 too: the domain reads what it wrote.
func (d *Domain) checkRead(m replicatedDisk, block int64, want uint64) {
	b := make([]byte, blockSize)
	if err := m.ReadAt(b, place(int(block))); err != nil {
		return // its disk server, or its host, is gone
	}
	got := binary.LittleEndian.Uint64(b)
	d.mu.Lock()
	gone := d.gone
	d.mu.Unlock() // the world looks at domains with its own lock held
	if got != want && !gone && !d.host.Down() {
		d.host.outside.Violate("P2", "the domain on %s reads %#x from block %d, where it wrote %#x", d.host.Name, got, block, want)
	}
}

// takeAnswer lets the program see that its write is done. It is called with
// the lock, while the program runs.
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

// fits says in what a disk is not as a state left it. A write that was under
// way then may be there or not: it will be given again.
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

// checkDisk is P2: a state that is about to run finds the disk as it left it.
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

// A diskHistory is what a domain knew of its disk at the end of each epoch of a
// session: its page 0.
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

// session returns the newest one.
func (o *Outside) session() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.disks) == 0 {
		return ""
	}
	return o.disks[len(o.disks)-1].session
}

// CheckPromoted is P2 for durable_ack: both hosts lost their power just now, and
// the copy that this one has is made the domain's disk when it is back. It is
// that of an epoch that was released, or of a newer one.
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
		o.violate("P2", "promoted after a power cut, to epoch %d: not the disk of an epoch from %d on, the newest one released: %v", newest, released[i], err)
	}
}

// Disks are a domain's disk in the hands of its disk server, as the protector
// that a Process is asks it.
type Disks struct {
	P      *Process
	Domain *Domain
	To     string

	mu     sync.Mutex
	link   *diskrepl.Link
	mirror replicatedDisk
}

func (s *Disks) Replicate(ctx context.Context, session string, lost func(error)) error {
	m := s.Domain.disk()
	if shared, ok := m.(*diskrepl.Shared); ok {
		shared.ReleaseAll() // left by an earlier session, after which this host was alone
		if err := shared.AwaitReleasedAll(ctx); err != nil {
			return err
		}
	}
	conn, ready, err := wire.OpenDisk(ctx, s.P.Dial(s.To), "sim", session, s.Domain.OfferedDisks()[0])
	if err != nil {
		return err
	}
	s.P.h.outside.sessionBegins(session)
	l, err := m.Attach(conn, diskrepl.Options{Session: session, SyncPoint: diskrepl.SyncPoint{Session: ready.MarkSession, Epoch: ready.MarkEpoch}, Limit: ready.Journal, Lost: lost})
	if err != nil {
		conn.Close()
		return err
	}
	s.mu.Lock()
	s.link, s.mirror = l, m
	s.mu.Unlock()
	s.Domain.mu.Lock()
	s.Domain.diskLost = func(err error) {
		l.Detach()
		lost(err)
	}
	s.Domain.mu.Unlock()
	// The disk server notices that its protector died.
	context.AfterFunc(s.P.Context(), l.Detach)
	return l.AwaitSync()
}

func (s *Disks) now() *diskrepl.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

func (s *Disks) End() {
	if l := s.now(); l != nil {
		l.Detach()
	}
}

func (s *Disks) Progress() []xlft.DiskProgress { return nil }

// Seal and Release are xlft.Gate's.
func (s *Disks) Seal(epoch uint64) error {
	if s.P.Dead() {
		return errDead
	}
	s.Domain.mu.Lock()
	page := bytes.Clone(s.Domain.page(0))
	s.Domain.mu.Unlock()
	s.P.h.outside.epochEnds(epoch, page)
	return s.now().Seal(epoch)
}

func (s *Disks) Release(epoch uint64) error {
	if s.P.Dead() {
		return errDead
	}
	s.P.h.outside.epochReleased(epoch)
	s.now().Release(epoch)
	return nil
}

// ReleaseAll is xlft.Gate's: what is held goes to the storage.
func (s *Disks) ReleaseAll() error {
	if s.P.Dead() {
		return errDead
	}
	if shared := s.Domain.shared(); shared != nil {
		return shared.ReleaseAll()
	}
	return nil
}

func (s *Disks) Drain(ctx context.Context) error {
	if s.P.Dead() {
		return errDead
	}
	if shared := s.Domain.shared(); shared != nil {
		return shared.Drain(ctx)
	}
	return nil
}

func (s *Disks) Discard() error {
	if s.P.Dead() {
		return errDead
	}
	if shared := s.Domain.shared(); shared != nil {
		shared.GiveUp()
	}
	return nil
}

// Close is xlft.Gate's. The disk server goes on.
func (s *Disks) Close() error { return nil }

// Held is xlft.Gate's: the backup's journal has room.
func (s *Disks) Held() (held, limit uint64, err error) { return 0, 0, nil }

// OfferedDisks is what the protector offers.
func (d *Domain) OfferedDisks() []wire.Disk {
	return []wire.Disk{{VDev: diskVDev, Size: d.disk().Size(), Shared: d.host.held != nil}}
}

// DiskHost is the backup's disk, as a receiver has it.
type DiskHost struct {
	P *Process
	// Broken, if set, makes a copy that does not keep a promise.
	Broken func(backup.DiskCopy) backup.DiskCopy
}

// Journal: little memory, so that the file is used.
func (h *DiskHost) Journal() (memory, file int64) { return 1 << 10, 8 << 10 }

func (h *DiskHost) Open(domain string, d wire.Disk) (backup.DiskCopy, error) {
	p := h.P.h.platter
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users > 0 {
		return nil, errors.New("simxen: the disk is in use")
	}
	if dom := h.P.h.Domain(domain); dom != nil && dom.Runs() {
		return nil, fmt.Errorf("simxen: %s runs from it", domain)
	}
	p.users++
	c := backup.DiskCopy(&platterCopy{Platter: p, proc: h.P, was: xlft.DiskRecord{State: p.state, Mark: p.mark}})
	h.P.onKill(func() { c.Close() })
	if h.Broken != nil {
		return h.Broken(c), nil
	}
	return c, nil
}

// platterCopy is the hand of a process on a platter: nothing that it does
// after its death has an effect.
type platterCopy struct {
	*Platter
	proc *Process
	was  xlft.DiskRecord
	once sync.Once
}

func (c *platterCopy) WriteAt(b []byte, off int64, fua bool) error {
	if c.proc.h.DurableAck { // a commit takes time then, and may be cut short
		time.Sleep(time.Duration(c.proc.h.outside.Rand()%2000) * time.Microsecond)
	}
	if c.proc.Dead() {
		return errDead
	}
	return c.Platter.WriteAt(b, off, fua)
}

func (c *platterCopy) Zero(off, n int64, _, fua bool) error {
	return c.WriteAt(make([]byte, n), off, fua)
}

func (c *platterCopy) Flush() error {
	c.proc.h.work()
	if c.proc.Dead() {
		return errDead
	}
	return c.Platter.Flush()
}

// SpillFile is a file in memory.
func (c *platterCopy) SpillFile() diskrepl.SpillFile { return new(ramFile) }

// Durable is the journal, in the hand of the process.
func (c *platterCopy) Durable() diskrepl.EpochStore {
	if !c.proc.h.DurableAck {
		return nil
	}
	return handFiles{c.journal, c.proc}
}

func (c *platterCopy) Was() xlft.DiskRecord { return c.was }

func (c *platterCopy) Begin(st xlft.DiskState) error {
	if err := c.Record(xlft.DiskRecord{State: st}); err != nil {
		return err
	}
	c.journal.clear()
	return nil
}

func (c *platterCopy) Record(r xlft.DiskRecord) error {
	if c.proc.Dead() {
		return errDead
	}
	now := c.proc.h.outside.session()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.mark = r.State, r.Mark
	if c.session = r.Mark.Session; c.session == "" {
		c.session = now
	}
	if r.State == xlft.UpToDate || r.Mark.Epoch > 0 {
		c.journal.clear()
	}
	return nil
}

func (c *platterCopy) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.users--
	})
	return nil
}

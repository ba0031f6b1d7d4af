package simxen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"xlft/diskrepl"
	"xlft/xlft"
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

// A Platter is a host's disk. What was not flushed is gone when the power fails.
type Platter struct {
	*medium
	users int
	state xlft.DiskState
	mark  diskrepl.Mark
}

type medium struct {
	mu      sync.Mutex
	b       []byte
	unsaved bool
	fail    bool
}

func newPlatter() *Platter {
	return &Platter{medium: &medium{b: make([]byte, diskChunks*diskrepl.ChunkSize)}}
}

// Share makes the hosts' disks one that all of them see.
func Share(hosts ...*Host) {
	for _, h := range hosts {
		h.platter = &Platter{medium: hosts[0].platter.medium}
		h.shared = &shared{h: h, layers: map[uint64]*layer{}}
	}
}

// newMirror returns the host's disk in the hands of a new disk server.
func (h *Host) newMirror() *diskrepl.Mirror {
	if h.shared == nil {
		return diskrepl.NewMirror(h.platter)
	}
	m, err := diskrepl.NewShared(powered{h.platter, h}, h.shared)
	if err != nil {
		panic(err)
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
	r := d.h.w.Rand()
	slow := time.Duration(r%8) * time.Millisecond
	if r>>32%10 == 0 {
		slow *= 10
	}
	time.Sleep(slow)
	return d.do(func() error { return d.Platter.WriteAt(b, off, fua) })
}
func (d powered) Zero(off, n int64, _, fua bool) error { return d.WriteAt(make([]byte, n), off, fua) }
func (d powered) Trim(off, n int64, fua bool) error    { return d.WriteAt(make([]byte, n), off, fua) }

// shared is what a host remembers for its disk server of writes that are held.
type shared struct {
	h *Host

	mu     sync.Mutex
	layers map[uint64]*layer
	free   bool
}

type layer struct {
	ramFile
	s     *shared
	epoch uint64
}

func (l *layer) Close() error { return nil }
func (l *layer) Sync() error  { return nil }

func (l *layer) Remove() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	delete(l.s.layers, l.epoch)
	return nil
}

func (s *shared) Create(epoch uint64) (diskrepl.Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.layers[epoch] != nil {
		return nil, fmt.Errorf("simxen: a layer of epoch %d is there", epoch)
	}
	s.layers[epoch] = &layer{s: s, epoch: epoch}
	return s.layers[epoch], nil
}

func (s *shared) Left() (map[uint64]diskrepl.Layer, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := map[uint64]diskrepl.Layer{}
	for e, l := range s.layers {
		left[e] = l
	}
	return left, s.free, nil
}

func (s *shared) SetFree(free bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = free
	return nil
}

// disk returns the domain's disk as its disk server has it now.
func (d *Domain) disk() *diskrepl.Mirror {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mirror
}

// RestartDisk kills the domain's disk server, and starts another.
func (d *Domain) RestartDisk() {
	d.disk().Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return
	}
	d.mirror = d.host.newMirror()
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
	copy(p.b[off:], b)
	p.unsaved = p.unsaved || !fua
	return nil
}

func (p *Platter) Zero(off, n int64, _, fua bool) error { return p.WriteAt(make([]byte, n), off, fua) }
func (p *Platter) Trim(off, n int64, fua bool) error    { return p.WriteAt(make([]byte, n), off, fua) }

func (p *Platter) Flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unsaved = false
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
func (d *Domain) checkRead(m *diskrepl.Mirror, block int64, want uint64) {
	b := make([]byte, blockSize)
	if err := m.ReadAt(b, place(int(block))); err != nil {
		return // its disk server, or its host, is gone
	}
	got := binary.LittleEndian.Uint64(b)
	d.mu.Lock()
	defer d.mu.Unlock()
	if got != want && !d.gone && !d.host.Down() {
		d.host.w.Violate("P2", "the domain on %s reads %#x from block %d, where it wrote %#x", d.host.Name, got, block, want)
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

// checkDisk is P2: a state that is about to run finds the disk as it left it.
// A write that was under way may be there or not: it will be given again.
func (w *World) checkDisk(page []byte, p *Platter) {
	if page == nil {
		return
	}
	busy, value := binary.LittleEndian.Uint64(page[memBusy:]), binary.LittleEndian.Uint64(page[memValue:])
	for i := range diskBlocks {
		want := binary.LittleEndian.Uint64(page[memTable+8*i:])
		got, whole := p.block(i)
		switch {
		case !whole:
			w.Violate("P2", "block %d of the disk is torn", i)
		case got != want && (busy != uint64(i)+1 || got != value):
			w.Violate("P2", "block %d of the disk has %#x, the state that is to run on knows %#x (write under way: block %d, %#x)", i, got, want, int(busy)-1, value)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unsaved {
		w.Violate("P2", "a domain runs from a disk that would forget a part if the power failed")
	}
	if p.users > 0 || p.state != xlft.DiskActive {
		w.Violate("P2", "a domain runs from a disk that is a copy (%q) with %d users", p.state, p.users)
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
	mirror *diskrepl.Mirror
}

func (s *Disks) Replicate(ctx context.Context, session string, lost func(error)) error {
	m := s.Domain.disk()
	m.Unhold() // left by an earlier session, after which this host was alone
	if err := m.AwaitUnheld(ctx); err != nil {
		return err
	}
	conn, ready, err := xlft.DialDisk(ctx, s.P.Dial(s.To), "sim", session, s.Domain.OfferedDisks()[0])
	if err != nil {
		return err
	}
	l, err := m.Attach(conn, diskrepl.Options{Session: session, Mark: diskrepl.Mark{Session: ready.MarkSession, Epoch: ready.MarkEpoch}, Limit: ready.Journal, Lost: lost})
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

// Seal and Release are the disk's part of an Output.
func (s *Disks) Seal(epoch uint64) error {
	if s.P.Dead() {
		return errDead
	}
	return s.now().Seal(epoch)
}

func (s *Disks) Release(epoch uint64) error {
	if s.P.Dead() {
		return errDead
	}
	s.now().Release(epoch)
	return nil
}

// Abandon, Drain and Discard are too.
func (s *Disks) Abandon() error {
	if s.P.Dead() {
		return errDead
	}
	return s.Domain.disk().Unhold()
}

func (s *Disks) Drain(ctx context.Context) error {
	if s.P.Dead() {
		return errDead
	}
	return s.Domain.disk().AwaitReleased(ctx)
}

func (s *Disks) Discard() error {
	if s.P.Dead() {
		return errDead
	}
	s.Domain.disk().Drop()
	return nil
}

// OfferedDisks is what the protector offers.
func (d *Domain) OfferedDisks() []wire.Disk {
	return []wire.Disk{{VDev: diskVDev, Size: d.disk().Size(), Shared: d.host.shared != nil}}
}

// DiskHost is the backup's disk, as a receiver has it.
type DiskHost struct {
	P *Process
	// Broken, if set, makes a copy that does not keep a promise.
	Broken func(xlft.DiskCopy) xlft.DiskCopy
}

// Journal: little memory, so that the file is used.
func (h *DiskHost) Journal() (memory, file int64) { return 1 << 10, 8 << 10 }

func (h *DiskHost) Open(domain string, d wire.Disk) (xlft.DiskCopy, error) {
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
	was := xlft.DiskRecord{State: p.state, Mark: p.mark}
	p.state, p.mark = xlft.DiskCopying, diskrepl.Mark{}
	if d.Shared {
		p.state = xlft.DiskReplica
	}
	c := xlft.DiskCopy(&platterCopy{p, h.P, was, sync.Once{}})
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
	if c.proc.Dead() {
		return errDead
	}
	return c.Platter.WriteAt(b, off, fua)
}

func (c *platterCopy) Zero(off, n int64, _, fua bool) error {
	return c.WriteAt(make([]byte, n), off, fua)
}

// SpillFile is a file in memory.
func (c *platterCopy) SpillFile() diskrepl.SpillFile { return new(ramFile) }

type ramFile struct {
	mu sync.Mutex
	b  []byte
}

func (f *ramFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if grow := off + int64(len(p)) - int64(len(f.b)); grow > 0 {
		f.b = append(f.b, make([]byte, grow)...)
	}
	return copy(f.b[off:], p), nil
}

func (f *ramFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := copy(p, f.b[min(off, int64(len(f.b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (c *platterCopy) Durable() diskrepl.Layers { return nil }

func (c *platterCopy) Was() xlft.DiskRecord { return c.was }

func (c *platterCopy) Record(r xlft.DiskRecord) error {
	if c.proc.Dead() {
		return errDead
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.mark = r.State, r.Mark
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

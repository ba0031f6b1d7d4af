package diskrepl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

// Layers keep what is held back from storage that both hosts see, outside of
// this process's memory: a process that is killed leaves them to the next one.
// They need not outlive the host: then the backup has what counts.
type Layers interface {
	// Create makes the layer of an epoch.
	Create(epoch uint64) (Layer, error)
	// Left returns what an earlier process left, and what SetFree recorded.
	Left() (layers map[uint64]Layer, free bool, err error)
	// SetFree records whether all layers there are may go to the storage.
	SetFree(free bool) error
}

// A Layer is a file.
type Layer interface {
	io.ReaderAt
	io.WriterAt
	// Truncate cuts it off behind so many bytes.
	Truncate(size int64) error
	// Sync returns when stable storage has it.
	Sync() error
	// Remove closes it and takes it away.
	Remove() error
	// Close closes it.
	Close() error
}

// ErrDropped: the writes that were held were given up, and the disk with them:
// the domain is another host's.
var ErrDropped = errors.New("diskrepl: the disk was given up to the other host")

// ErrOtherStorage: what this host and the backup call the disk is not the same.
var ErrOtherStorage = errors.New("diskrepl: the backup does not read what this host wrote: it is not the same storage")

// A hold keeps writes from shared storage until their epoch is acked. All of it
// is guarded by the Mirror's lock.
type hold struct {
	store Layers

	on       bool // writes are held
	free     bool // all that is held goes to the storage, and then on ends
	dropped  bool // ErrDropped
	flushing bool // a flusher runs
	limit    int64
	bytes    int64     // in layers
	layers   []*layer  // oldest first; the last one is open
	released uint64    // newest epoch that is acked
	checked  bool      // the backup has read what was written in this session
	err      error     // of the last try to write to the storage
	again    time.Time // when to try again
	scratch  []byte
}

// A layer is what an epoch wrote: its records in a file, as they are sent, and
// where in it the newest data is.
type layer struct {
	epoch uint64
	f     Layer
	size  int64
	x     extents
	refs  int // readers, and one while it is held
}

// heldAlone is the limit of what is held while no backup says how much it takes.
const heldAlone = 256 << 20

// NewShared returns a Mirror of storage that both hosts see. While a session
// lasts, from its first Seal on, and until Unhold or Drop, writes are held in
// layers until their epoch is released. It goes on with what an earlier process
// left.
func NewShared(dev Device, store Layers) (*Mirror, error) {
	m := NewMirror(dev)
	m.quick = nil
	h := &hold{store: store, limit: heldAlone}
	m.hold = h
	left, free, err := store.Left()
	if err != nil {
		return nil, fmt.Errorf("diskrepl: writes held by an earlier process: %w", err)
	}
	epochs := slices.Sorted(maps.Keys(left))
	for i, e := range epochs {
		l := &layer{epoch: e, f: left[e], refs: 1}
		// The process may have been killed inside the last record, which was
		// not answered then. It goes: what follows may be shorter.
		err := l.recover(dev.Size())
		if i == len(epochs)-1 && errors.Is(err, ErrLost) {
			err = l.f.Truncate(l.size)
		}
		if err != nil {
			return nil, fmt.Errorf("diskrepl: writes held by an earlier process, epoch %d: %w", e, err)
		}
		h.layers = append(h.layers, l)
		h.bytes += l.size
	}
	if len(h.layers) > 0 {
		h.on, h.free = true, free
		h.startFlusher(m)
	}
	return m, nil
}

// recover finds out what a layer's file has.
func (l *layer) recover(disk int64) error {
	var body []byte // of which only the place is kept
	get := func(n int) []byte {
		if cap(body) < n {
			body = make([]byte, n)
		}
		return body[:n]
	}
	return readLayer(l.f, l.epoch, disk, get, func(d *reader, rec record, _ []byte) (bool, error) {
		l.add(rec, d.off)
		return true, nil
	})
}

// add notes a record that follows the others in the file, which then has so
// many bytes.
func (l *layer) add(rec record, size int64) {
	l.x.do(rec, nil, l.size+headerSize)
	l.size = size
}

// readLayer reads the records of a layer, with bodies in memory that get gives,
// until f says that it has enough, or to the end.
func readLayer(l Layer, epoch uint64, disk int64, get func(int) []byte, f func(d *reader, rec record, body []byte) (more bool, err error)) error {
	d := newReader(io.NewSectionReader(l, 0, 1<<62), 64<<10)
	for {
		rec, body, err := d.next(get)
		if errors.Is(err, io.EOF) { // inside a record it is io.ErrUnexpectedEOF
			return nil
		}
		if err == nil && (rec.epoch != epoch || rec.typ != recSeal && !rec.fits(disk)) {
			err = fmt.Errorf("%v of epoch %d, range %d+%d of %d bytes", rec.typ, rec.epoch, rec.off, rec.n, disk)
		}
		if err != nil {
			return err
		}
		if more, err := f(d, rec, body); err != nil || !more {
			return err
		}
	}
}

// load reads data of a layer.
func (l *layer) load(b []byte, at int64) error {
	if n, err := l.f.ReadAt(b, at); n < len(b) {
		return fmt.Errorf("diskrepl: read back what is held: %w", err)
	}
	return nil
}

// unref gives a layer up. It is called with the lock.
func (l *layer) unref() {
	if l.refs--; l.refs == 0 {
		l.f.Remove() // if it can't be removed, a later process writes it once more
	}
}

// top makes a new open layer.
func (h *hold) top(epoch uint64) error {
	f, err := h.store.Create(epoch)
	if err != nil {
		return fmt.Errorf("diskrepl: hold writes back: %w", err)
	}
	h.layers = append(h.layers, &layer{epoch: epoch, f: f, refs: 1})
	return nil
}

// seal ends the epoch, and begins to hold with the first one.
func (h *hold) seal(m *Mirror, epoch uint64) error {
	if !h.on {
		if err := h.store.SetFree(false); err != nil {
			return fmt.Errorf("diskrepl: hold writes back: %w", err)
		}
	}
	if err := h.top(epoch + 1); err != nil {
		return err
	}
	if !h.on {
		h.on = true
		h.startFlusher(m)
	}
	return nil
}

func (h *hold) startFlusher(m *Mirror) {
	h.flushing = true
	go m.flusher()
}

// full reports whether n bytes must wait.
func (h *hold) full(n int64) bool { return h.bytes > 0 && h.bytes+n > h.limit }

// unacked returns how many bytes are in epochs that are not.
func (h *hold) unacked() (n int64) {
	for _, l := range h.layers {
		if l.epoch > h.released {
			n += l.size
		}
	}
	return n
}

// holdBack holds a write back, if writes are to be. held says whether.
func (m *Mirror) holdBack(typ recordType, flags uint8, off, n int64, body []byte) (held bool, err error) {
	h, size := m.hold, headerSize+int64(len(body))
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case h.dropped:
			return true, ErrDropped
		case m.over:
			return true, ErrDetached
		case !h.on:
			return false, nil
		case h.free || h.full(size) || m.link != nil && m.link.queued >= queueMax:
			m.cond.Wait()
			continue
		}
		top := h.layers[len(h.layers)-1]
		rec := record{typ, flags, uint32(n), uint64(off), top.epoch}
		h.scratch = append(rec.append(h.scratch[:0]), body...)
		_, err := top.f.WriteAt(h.scratch, top.size)
		if err != nil {
			err = errors.Join(err, top.f.Truncate(top.size)) // a part may be there
		}
		if errors.Is(err, syscall.ENOSPC) && h.bytes > 0 {
			h.limit = h.bytes // there is no more room than this: wait for what is held to leave
			continue
		}
		if err != nil {
			return true, fmt.Errorf("diskrepl: hold a write back: %w", err)
		}
		top.add(rec, top.size+size)
		h.bytes += size
		if l := m.link; l != nil {
			l.append(rec, body)
		}
		return true, nil
	}
}

// A piece is a part of what is read.
type piece struct {
	extent
	l *layer // which has it; nil: the disk has it
}

// pieces adds to a list where a range is, looking at so many layers, and holds
// on to those that are in it.
func (h *hold) pieces(list []piece, off, end int64, layers int) []piece {
	if off >= end {
		return list
	}
	if layers == 0 {
		return append(list, piece{extent{off: off, end: end}, nil})
	}
	l := h.layers[layers-1]
	from, to := l.x.over(off, end)
	for _, e := range l.x[from:to] {
		e = e.cut(max(e.off, off), min(e.end, end))
		list = append(h.pieces(list, off, e.off, layers-1), piece{e, l})
		l.refs++
		off = e.end
	}
	return h.pieces(list, off, end, layers-1)
}

// readHeld reads through what is held.
func (m *Mirror) readHeld(p []byte, off int64) error {
	h := m.hold
	m.mu.Lock()
	if h.dropped {
		m.mu.Unlock()
		return ErrDropped
	}
	if len(h.layers) == 0 {
		m.mu.Unlock()
		return m.dev.ReadAt(p, off)
	}
	pieces := h.pieces(nil, off, off+int64(len(p)), len(h.layers))
	m.mu.Unlock()

	var err error
	for _, e := range pieces {
		b := p[e.off-off : e.end-off]
		switch {
		case err != nil:
		case e.l == nil:
			err = m.dev.ReadAt(b, e.off)
		case e.typ == recWrite:
			err = e.l.load(b, e.at)
		default:
			clear(b)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range pieces {
		if e.l != nil {
			e.l.unref()
		}
	}
	return err
}

// flushHeld is a flush while writes may be held. Held ones are safe when their
// epoch is acked, and nobody hears of them before.
func (m *Mirror) flushHeld() error {
	h := m.hold
	m.mu.Lock()
	for h.on && h.free {
		m.cond.Wait()
	}
	on, dropped := h.on, h.dropped
	m.mu.Unlock()
	switch {
	case dropped:
		return ErrDropped
	case on:
		return nil
	}
	return m.dev.Flush()
}

// retryFlush is how long a disk that failed is left alone.
const retryFlush = time.Second

// flusher writes layers to the storage when they may go there. One runs while
// writes are held.
func (m *Mirror) flusher() {
	h := m.hold
	m.mu.Lock()
	defer func() {
		h.flushing = false
		m.cond.Broadcast()
		m.mu.Unlock()
	}()
	for {
		for !h.dropped && !m.over && (len(h.layers) == 0 || !h.free && h.layers[0].epoch > h.released || time.Now().Before(h.again)) {
			if h.free && len(h.layers) == 0 {
				h.on, h.free, h.err = false, false, nil
				return
			}
			m.cond.Wait()
		}
		if h.dropped || m.over {
			return
		}
		l := h.layers[0]
		m.mu.Unlock()
		err := l.x.writeOut(m.dev, l.load)
		m.mu.Lock()
		h.err = err
		if err != nil {
			// The domain was told that these are written: nothing else will do.
			h.again = time.Now().Add(retryFlush)
			time.AfterFunc(retryFlush, m.wake)
			continue
		}
		if h.dropped {
			return
		}
		if m.link != nil && !h.free {
			m.link.applied(l)
		}
		h.layers = h.layers[1:]
		h.bytes -= l.size
		l.unref()
		m.cond.Broadcast()
	}
}

// applied tells the backup that the storage has a layer; of the first writes in
// a session the backup is asked what it reads there. It is called with the lock,
// which it gives up meanwhile.
func (l *Link) applied(done *layer) {
	m, h := l.m, l.m.hold
	if !h.checked && len(done.x) > 0 {
		m.mu.Unlock()
		err := l.probe(done.x[0].off &^ (ChunkSize - 1))
		if err != nil {
			l.fail(err)
		}
		m.mu.Lock()
		h.checked = err == nil
	}
	if m.link == l {
		l.append(record{typ: recApplied, off: done.epoch, epoch: l.epoch}, nil)
	}
}

func (m *Mirror) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cond.Broadcast()
}

// Unhold lets everything that is held go to the storage, and then holds nothing
// any more. It does not wait for that; the domain's writes do.
func (m *Mirror) Unhold() error {
	h := m.hold
	if h == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !h.on || h.dropped {
		return nil
	}
	err := h.store.SetFree(true)
	h.free = true
	m.cond.Broadcast()
	return err
}

// Drop gives up what is held, and the disk: whoever reads or writes it here is
// told ErrDropped.
func (m *Mirror) Drop() {
	h := m.hold
	if h == nil {
		return
	}
	m.unlink()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !h.on {
		return
	}
	h.dropped = true
	m.cond.Broadcast()
	for h.flushing {
		m.cond.Wait()
	}
	for _, l := range h.layers {
		l.unref()
	}
	h.layers, h.bytes = nil, 0
}

// Stop ends the link, and the writing to shared storage by this process. What
// is held is left to the next one.
func (m *Mirror) Stop() {
	m.unlink()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	m.cond.Broadcast()
	h := m.hold
	if h == nil {
		return
	}
	for h.flushing {
		m.cond.Wait()
	}
	for _, l := range h.layers {
		l.f.Close()
	}
}

// unlink ends the link, if there is one: the flusher may wait for its answer.
func (m *Mirror) unlink() {
	m.mu.Lock()
	l := m.link
	m.mu.Unlock()
	if l != nil {
		l.fail(ErrDetached)
	}
}

// A Holding says what a Mirror of shared storage holds back.
type Holding struct {
	On      bool   `json:"on"`
	Bytes   int64  `json:"bytes"`
	Freed   bool   `json:"freed"`             // all of it is on its way to the storage
	Dropped bool   `json:"dropped,omitempty"` // ErrDropped
	Error   string `json:"error,omitempty"`   // of the last try to write to the storage
}

// Holding returns what is so now; false if the storage is not shared.
func (m *Mirror) Holding() (Holding, bool) {
	h := m.hold
	if h == nil {
		return Holding{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := Holding{On: h.on, Bytes: h.bytes, Freed: h.free, Dropped: h.dropped}
	if h.err != nil {
		v.Error = h.err.Error()
	}
	return v, true
}

// AwaitUnheld waits until nothing is held back.
func (m *Mirror) AwaitUnheld(ctx context.Context) error {
	return m.awaitHold(ctx, func(h *hold) bool { return !h.on })
}

// AwaitReleased waits until the storage has all that was released, so that
// nothing more is written to it until the next release.
func (m *Mirror) AwaitReleased(ctx context.Context) error {
	return m.awaitHold(ctx, func(h *hold) bool { return len(h.layers) == 0 || h.layers[0].epoch > h.released })
}

func (m *Mirror) awaitHold(ctx context.Context, done func(*hold) bool) error {
	h := m.hold
	if h == nil {
		return nil
	}
	defer context.AfterFunc(ctx, m.wake)()
	m.mu.Lock()
	defer m.mu.Unlock()
	for !done(h) {
		switch {
		case h.dropped || m.over:
			return ErrDropped
		case ctx.Err() != nil:
			if h.err != nil {
				return fmt.Errorf("%w: %w", ctx.Err(), h.err)
			}
			return ctx.Err()
		}
		m.cond.Wait()
	}
	return nil
}

// probes is how many chunks are compared before a session, to find a
// configuration that is wrong before anything is written.
const probes = 32

// verify compares some chunks with the backup's, while the domain writes to the
// disk directly.
func (l *Link) verify() {
	size := l.m.dev.Size()
	chunks := (size + ChunkSize - 1) / ChunkSize
	for i := range min(probes, chunks) {
		c := rand.Int64N(chunks)
		switch i {
		case 0:
			c = 0
		case 1:
			c = chunks - 1
		}
		off := c * ChunkSize
		s := l.m.lock.lock(off, ChunkSize)
		err := l.probe(off)
		l.m.lock.unlock(s)
		if err != nil {
			l.fail(err)
			return
		}
		l.m.mu.Lock()
		l.progress.Compared = l.progress.Total * (i + 1) / min(probes, chunks)
		l.m.mu.Unlock()
	}
	l.synced()
}

// probe asks the replica for the hash of a chunk that nobody changes meanwhile.
func (l *Link) probe(off int64) error {
	b := make([]byte, min(ChunkSize, l.m.dev.Size()-off))
	l.m.mu.Lock()
	l.append(record{typ: recProbe, n: uint32(len(b)), off: uint64(off), epoch: l.epoch}, nil)
	l.cut(0)
	l.m.mu.Unlock()
	if err := l.m.dev.ReadAt(b, off); err != nil {
		return fmt.Errorf("diskrepl: compare with the backup: %w", err)
	}
	want := sha256.Sum256(b)
	select {
	case got := <-l.answers:
		if !bytes.Equal(got, want[:]) {
			return fmt.Errorf("%w (%d bytes at %d differ)", ErrOtherStorage, len(b), off)
		}
		return nil
	case <-l.ended:
		return ErrDetached
	}
}

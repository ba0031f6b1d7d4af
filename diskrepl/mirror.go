package diskrepl

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// ChunkSize is the unit of the first copy: a chunk is sent if its hash at the
// backup is another.
const ChunkSize = 64 << 10

const hashSize = sha256.Size

const (
	segmentSize = 256 << 10 // what is handed to the connection at once, about
	queueMax    = 16 << 20  // bytes that wait for the connection; then writers wait

	freeSegments = 16 // are kept for what comes

	// gatherTime is how long less than a segment waits for more. Nobody waits for
	// it before the epoch is sealed, which ends it; each send costs both hosts.
	gatherTime = 50 * time.Millisecond
)

// Progress is how far a first copy is. Units are bytes.
type Progress struct {
	Total    int64 `json:"total"`
	Compared int64 `json:"compared"`
	Sent     int64 `json:"sent"` // of Compared: they differed
	Synced   bool  `json:"synced"`
	Known    bool  `json:"known"` // what differs was known: Total is that much, and all of it is sent
}

// ErrDetached is the error of a link that its own side ended.
var ErrDetached = errors.New("diskrepl: detached")

// A Mirror is the primary's disk. It is a Device; while a [Link] is attached it
// sends what is written. If both hosts see the same storage ([NewShared]) it
// also holds writes back.
type Mirror struct {
	dev   Device
	quick quick     // nil if dev is none
	hold  *hold     // nil unless both hosts see the storage
	dirty *dirtyLog // nil if they do, and before it is needed; guarded by mu
	lock  rangeLock

	mu   sync.Mutex
	cond sync.Cond // anything below, or in the link, has changed
	link *Link
	over bool // Stop was called
}

// NewMirror returns a Mirror without a link: a disk as it is.
func NewMirror(dev Device) *Mirror {
	m := &Mirror{dev: dev}
	m.quick, _ = dev.(quick)
	m.cond.L = &m.mu
	return m
}

// Track keeps the record of what is changed, by which a copy that is a little
// behind is brought up without comparing all of it, in mem: DirtySize bytes that
// the next process finds as this one leaves them. It is called before anything
// else.
func (m *Mirror) Track(mem []byte) { m.dirty = newDirtyLog(mem, m.dev.Size()) }

// A Link is a Mirror's connection to a Replica. Its methods may be called by
// any goroutine.
type Link struct {
	m       *Mirror
	session string
	conn    io.ReadWriteCloser
	limit   int64
	rate    int64
	lost    func(error)
	wg      sync.WaitGroup
	ended   chan struct{} // closed by fail

	// Guarded by m.mu.
	epoch    uint64 // the open one
	open     []byte // records not yet handed to the connection
	records  uint64 // in open
	queue    []segment
	queued   int64 // bytes in open and queue
	unacked  [2]int64
	free     [][]byte
	idle     bool // the sender waits for something to send
	progress Progress
	err      error

	answers chan []byte // of shared storage: to probe
}

// A segment is a run of records; with seal, the last ones of an epoch.
type segment struct {
	b       []byte
	records uint64
	seal    uint64
}

// Options are how a Mirror replicates.
type Options struct {
	// Session names the session, for the Mark of the replica's disk.
	Session string
	// Mark is what the replica's disk is: only what was changed since is
	// sent, if that is known.
	Mark Mark
	// Limit is how many bytes of writes the replica can hold for epochs that
	// are not committed; then writers wait for a Release.
	Limit int64
	// Rate is how many bytes a second the first copy compares, at most; 0: as
	// many as it can.
	Rate int64
	// Lost is called once, on a goroutine of its own, if the link breaks by
	// itself; writes then go to this disk alone.
	Lost func(error)
}

// Attach begins a session: the first copy runs, and every write is sent, from
// epoch 1 on. It fails if there is a link.
func (m *Mirror) Attach(conn io.ReadWriteCloser, o Options) (*Link, error) {
	l := &Link{m: m, session: o.Session, conn: conn, limit: o.Limit, rate: o.Rate, lost: o.Lost, epoch: 1, progress: Progress{Total: m.dev.Size()}, ended: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.over:
		return nil, ErrDetached
	case m.link != nil:
		return nil, errors.New("diskrepl: the disk is being replicated already")
	}
	if h := m.hold; h != nil {
		switch {
		case h.dropped:
			return nil, ErrDropped
		case h.on:
			return nil, errors.New("diskrepl: writes of an earlier session are still held")
		}
		h.limit, h.released, h.checked = o.Limit, 0, false
		l.answers = make(chan []byte)
		l.wg.Go(l.verify)
	}
	if m.hold == nil {
		if m.dirty == nil {
			m.Track(make([]byte, DirtySize(m.dev.Size())))
		}
		if bitmap, ok := m.dirty.since(o.Mark); ok {
			l.progress.Total, l.progress.Known = count(bitmap)*ChunkSize, true
			l.wg.Go(func() { l.resend(bitmap) })
		} else {
			l.append(record{typ: recCompare, epoch: 1}, nil)
			l.cut(0) // the answer is waited for
		}
	}
	m.link = l
	l.wg.Go(l.write)
	l.wg.Go(l.listen)
	return l, nil
}

// Detach ends the session. It returns when nothing more is sent.
func (l *Link) Detach() {
	l.fail(ErrDetached)
	l.wg.Wait()
}

// fail ends the link.
func (l *Link) fail(err error) {
	l.m.mu.Lock()
	first := l.err == nil
	if first {
		l.err = err
		if l.m.link == l {
			l.m.link = nil
		}
		l.open, l.queue, l.free, l.queued = nil, nil, nil, 0
		l.m.cond.Broadcast()
	}
	l.m.mu.Unlock()
	if first {
		close(l.ended)
		l.conn.Close()
		if !errors.Is(err, ErrDetached) {
			go l.lost(err)
		}
	}
}

// Seal ends the open epoch, which must have that number. It waits for nobody.
func (l *Link) Seal(epoch uint64) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case !l.progress.Synced:
		return errors.New("diskrepl: seal before the disks are in sync")
	case epoch != l.epoch:
		return fmt.Errorf("diskrepl: seal of epoch %d while %d is open", epoch, l.epoch)
	}
	if h := l.m.hold; h != nil {
		if err := h.seal(l.m, epoch); err != nil {
			return err
		}
	} else if epoch == 1 {
		l.m.dirty.start(l.session, 2)
	} else {
		l.m.dirty.seal(epoch)
	}
	l.cut(epoch)
	if epoch == 1 {
		l.unacked[1] = 0 // the first copy is held back nowhere
	}
	l.epoch++
	return nil
}

// Release says that the backup has acked an epoch.
func (l *Link) Release(epoch uint64) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if epoch < l.epoch && l.err == nil {
		l.unacked[epoch&1] = 0
		if h := l.m.hold; h != nil {
			h.released = max(h.released, epoch)
		} else {
			l.m.dirty.acked(epoch)
		}
		l.m.cond.Broadcast()
	}
}

// Progress returns how far the first copy is.
func (l *Link) Progress() Progress {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.progress
}

// Unacked returns how many bytes of writes are in epochs that are not acked,
// and how many may be.
func (l *Link) Unacked() (held, limit int64) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if h := l.m.hold; h != nil {
		return h.unacked(), h.limit
	}
	return l.unacked[0] + l.unacked[1], l.limit
}

// AwaitSync waits until the disks are in sync, or the link ends.
func (l *Link) AwaitSync() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for l.err == nil && !l.progress.Synced {
		l.m.cond.Wait()
	}
	return l.err
}

// cut hands what is open to the connection. It is called with the lock.
func (l *Link) cut(seal uint64) {
	l.queue = append(l.queue, segment{l.open, l.records, seal})
	l.open, l.records = nil, 0
	if n := len(l.free); n > 0 {
		l.open, l.free = l.free[n-1][:0], l.free[:n-1]
	}
	l.m.cond.Broadcast()
}

// full reports whether a record must wait. It is called with the lock.
func (l *Link) full(n int64) bool {
	if l.queued >= queueMax {
		return true
	}
	// Epoch 1 is the first copy: the replica does not hold it back. A record
	// longer than the limit gets through alone.
	held := l.unacked[0] + l.unacked[1]
	return l.epoch > 1 && held > 0 && held+n > l.limit
}

// send puts a record into the open epoch, if there is a link.
func (m *Mirror) send(typ recordType, flags uint8, off, n int64, body []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(typ, flags, off, n, body)
}

// put is send with the lock, which it gives up while it waits for room.
func (m *Mirror) put(typ recordType, flags uint8, off, n int64, body []byte) {
	size := headerSize + int64(len(body))
	for m.link != nil && m.link.full(size) {
		m.cond.Wait()
	}
	m.dirty.mark(off, n)
	l := m.link
	if l == nil {
		return
	}
	l.append(record{typ, flags, uint32(n), uint64(off), l.epoch}, body)
	l.unacked[l.epoch&1] += size
}

// append puts a record into the open segment. It is called with the lock.
func (l *Link) append(r record, body []byte) {
	l.open = append(r.append(l.open), body...)
	l.records++
	l.queued += headerSize + int64(len(body))
	if len(l.open) >= segmentSize {
		l.cut(0)
	} else if l.idle {
		l.m.cond.Broadcast()
	}
}

// write sends what is put. One goroutine per link.
func (l *Link) write() {
	var s sum
	m := l.m
	for {
		m.mu.Lock()
		for l.err == nil && len(l.queue) == 0 && len(l.open) == 0 {
			l.idle = true
			m.cond.Wait()
		}
		l.idle = false
		l.gather()
		if l.err != nil {
			m.mu.Unlock()
			return
		}
		if len(l.queue) == 0 {
			l.cut(0)
		}
		seg := l.queue[0]
		l.queue = l.queue[1:]
		m.mu.Unlock()

		s.records += seg.records
		send := func(b []byte) error {
			if _, err := l.conn.Write(b); err != nil {
				return fmt.Errorf("diskrepl: send: %w", err)
			}
			return nil
		}
		var err error
		for part := range slices.Chunk(seg.b, cached) {
			s.add(0, part) // the processor's cache has it when it is sent
			if err = send(part); err != nil {
				break
			}
		}
		if err == nil && seg.seal > 0 {
			err = send(s.append(record{typ: recSeal, n: sealSize, epoch: seg.seal}.append(nil)))
			s = sum{}
		}
		if err != nil {
			l.fail(err)
			return
		}
		m.mu.Lock()
		l.queued -= int64(len(seg.b))
		if len(l.free) < freeSegments && cap(seg.b) <= 8*segmentSize {
			l.free = append(l.free, seg.b)
		}
		m.cond.Broadcast()
		m.mu.Unlock()
	}
}

// gather waits until there is a whole segment, or for a while. It is called
// with the lock.
func (l *Link) gather() {
	m, over := l.m, false
	if l.err != nil || len(l.queue) > 0 {
		return
	}
	defer time.AfterFunc(gatherTime, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		over = true
		m.cond.Broadcast()
	}).Stop()
	for !over && l.err == nil && len(l.queue) == 0 {
		m.cond.Wait()
	}
}

// listen hears the replica: hashes of what it has, or why it can't go on.
func (l *Link) listen() {
	r := newReader(l.conn, tlsRecord)
	var body []byte
	get := func(n int) []byte {
		if cap(body) < n {
			body = make([]byte, n)
		}
		return body[:n]
	}
	chunk := make([]byte, ChunkSize)
	begun := time.Now()
	for {
		rec, b, err := r.next(get)
		if err == nil {
			switch rec.typ {
			case recHashes:
				if l.answers != nil {
					select {
					case l.answers <- b: // whoever takes it is done with it before the next probe
					case <-l.ended:
					}
					continue
				}
				err = l.compare(int64(rec.off), b, chunk, begun)
			case recFailed:
				err = fmt.Errorf("diskrepl: the replica failed: %s", b)
			default:
				err = fmt.Errorf("diskrepl: %v from the replica", rec.typ)
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("diskrepl: the replica hung up")
			}
			l.fail(err)
			return
		}
	}
}

// compare sends the chunks whose hashes differ.
func (l *Link) compare(off int64, hashes, chunk []byte, begun time.Time) error {
	total := l.m.dev.Size()
	p := l.Progress()
	if p.Known {
		return errors.New("diskrepl: hashes that nobody asked for")
	}
	if off != p.Compared || len(hashes) == 0 || len(hashes)%hashSize != 0 || p.Synced {
		return fmt.Errorf("diskrepl: %d bytes of hashes from offset %d, expected from %d", len(hashes), off, p.Compared)
	}
	for ; len(hashes) > 0; hashes = hashes[hashSize:] {
		if off >= total {
			return errors.New("diskrepl: hashes beyond the end of the disk")
		}
		b := chunk[:min(ChunkSize, total-off)]
		if err := l.copyChunk(b, off, hashes[:hashSize], off+int64(len(b)), begun); err != nil {
			return err
		}
		off += int64(len(b))
	}
	if off == total {
		l.synced()
	}
	return nil
}

// resend sends the chunks that are known to differ.
func (l *Link) resend(bitmap []byte) {
	total, done := l.m.dev.Size(), int64(0)
	chunk, begun := make([]byte, ChunkSize), time.Now()
	for off := int64(0); off < total; off += ChunkSize {
		if c := off / ChunkSize; bitmap[c>>3]&(1<<(c&7)) == 0 {
			continue
		}
		done += ChunkSize
		if err := l.copyChunk(chunk[:min(ChunkSize, total-off)], off, nil, done, begun); err != nil {
			l.fail(err)
			return
		}
	}
	l.synced()
}

// copyChunk sends a chunk, through b, unless its hash is as given. done is how
// far the first copy is then.
func (l *Link) copyChunk(b []byte, off int64, hash []byte, done int64, begun time.Time) error {
	// Nobody writes to the chunk from here until it is in the queue.
	s := l.m.lock.lock(off, int64(len(b)))
	err := l.m.dev.ReadAt(b, off)
	differs := err == nil
	if differs && hash != nil {
		h := sha256.Sum256(b)
		differs = !bytes.Equal(h[:], hash)
	}
	if differs {
		l.m.send(recWrite, 0, off, int64(len(b)), b)
	}
	l.m.lock.unlock(s)
	if err != nil {
		return fmt.Errorf("diskrepl: first copy: %w", err)
	}
	if l.rate > 0 {
		due := begun.Add(time.Duration(float64(done) / float64(l.rate) * float64(time.Second)))
		select {
		case <-time.After(time.Until(due)):
		case <-l.ended:
			return ErrDetached
		}
	}
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.progress.Compared = done
	if differs {
		l.progress.Sent += int64(len(b))
	}
	return l.err
}

// synced ends the first copy.
func (l *Link) synced() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.err == nil {
		l.append(record{typ: recSynced, epoch: l.epoch}, nil)
		l.progress.Synced = true
		l.m.cond.Broadcast()
	}
}

// Size returns the disk's length in bytes.
func (m *Mirror) Size() int64 { return m.dev.Size() }

// ReadAt reads this host's copy, or what is written to the shared one.
func (m *Mirror) ReadAt(p []byte, off int64) error {
	if m.hold != nil {
		return m.readHeld(p, off)
	}
	return m.dev.ReadAt(p, off)
}

// TryReadAt does so if that needs no wait.
func (m *Mirror) TryReadAt(p []byte, off int64) bool {
	return m.quick != nil && m.quick.TryReadAt(p, off)
}

// QuickWrites reports whether a write waits neither for the disk nor for the
// backup.
func (m *Mirror) QuickWrites() bool {
	if m.quick == nil || !m.quick.QuickWrites() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.link
	return l == nil || l.queued < queueMax/2 && !l.full(l.limit/2)
}

// mirrored does what changes a range, here and then at the backup. An error
// here is the domain's to hear; the backup is not told of what failed.
func (m *Mirror) mirrored(off, n int64, do func() error, typ recordType, flags uint8, body []byte) error {
	s := m.lock.lock(off, n)
	defer m.lock.unlock(s)
	if m.hold != nil {
		if held, err := m.holdBack(typ, flags, off, n, body); held {
			return err
		}
		return do()
	}
	// Known before it is done, should this process be killed; and when it is,
	// as a part of the epoch that is open then.
	m.mu.Lock()
	m.dirty.mark(off, n)
	m.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	m.send(typ, flags, off, n, body)
	return nil
}

func fuaFlag(fua bool) uint8 {
	if fua {
		return flagFUA
	}
	return 0
}

// WriteAt writes p here and sends it.
func (m *Mirror) WriteAt(p []byte, off int64, fua bool) error {
	return m.mirrored(off, int64(len(p)), func() error { return m.dev.WriteAt(p, off, fua) }, recWrite, fuaFlag(fua), p)
}

// Zero makes a range read as zeroes, here and there.
func (m *Mirror) Zero(off, n int64, keep, fua bool) error {
	flags := fuaFlag(fua)
	if keep {
		flags |= flagKeep
	}
	return m.mirrored(off, n, func() error { return m.dev.Zero(off, n, keep, fua) }, recZero, flags, nil)
}

// Trim is sent too: what a trimmed range reads as is each disk's own matter,
// until it is written again.
func (m *Mirror) Trim(off, n int64, fua bool) error {
	return m.mirrored(off, n, func() error { return m.dev.Trim(off, n, fua) }, recTrim, fuaFlag(fua), nil)
}

// Flush flushes this host's copy. At the backup it is a barrier: the promise
// to the domain is kept by this disk, and after a takeover by [Replica.Finish].
func (m *Mirror) Flush() error {
	if m.hold != nil {
		return m.flushHeld()
	}
	if err := m.dev.Flush(); err != nil {
		return err
	}
	m.send(recFlush, 0, 0, 0, nil)
	return nil
}

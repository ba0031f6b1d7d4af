package diskrepl

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"xlft/diskrepl/internal/rangelock"
)

const (
	segmentSize = 256 << 10 // bytes after which a segment is sent
	queueMax    = 16 << 20  // bytes that may wait to be sent; beyond that writers wait

	freeSegments = 16 // buffers of sent segments that are kept for reuse

	// gatherTime is how long a segment that is not full waits for more records.
	// Sealing the epoch ends the wait, and nobody needs the records earlier;
	// each send costs both hosts.
	gatherTime = 50 * time.Millisecond
)

// Progress is the progress of a first copy. Sizes are in bytes.
type Progress struct {
	Total    int64 `json:"total"`
	Compared int64 `json:"compared"`
	Sent     int64 `json:"sent"` // the part of Compared that differed
	Synced   bool  `json:"synced"`
	Known    bool  `json:"known"` // the differences were known: Total counts them alone, and all are sent
}

// ErrDetached is the error of a link that this side ended, and of a disk that
// this process has stopped.
var ErrDetached = errors.New("diskrepl: detached")

// Options are the parameters of a session.
type Options struct {
	// Session is the name of the session. It becomes a part of the replica's
	// SyncPoint.
	Session string
	// SyncPoint is what the replica's disk is consistent as of. If the changes
	// since then are known, the first copy sends only them. A Shared ignores
	// it.
	SyncPoint SyncPoint
	// Limit is how many bytes of writes the replica can hold for epochs that
	// are not committed: the bodies, and 64 bytes for each. At the limit, writers wait
	// for a commit.
	Limit int64
	// Rate limits the first copy, in compared bytes per second; 0 is no limit.
	// A Shared ignores it.
	Rate int64
	// Verify says that the replica knows how to answer [Link.Verify].
	Verify bool
	// Lost is called once, on a goroutine of its own, if the link breaks by
	// itself. Writes then go to this host's disk alone.
	Lost func(error)
}

// A primaryDisk is what Mirror and Shared have in common: the Device that they
// stand in front of, and the Link of the session.
type primaryDisk struct {
	dev  Device
	lock rangelock.Lock

	mu     sync.Mutex
	cond   sync.Cond // signals every change below, and of the fields of Link, Mirror and Shared that mu guards
	link   *Link     // nil without a session
	closed bool      // Stop was called
}

func (d *primaryDisk) init(dev Device) {
	d.dev = dev
	d.cond.L = &d.mu
}

// Size returns the length of the disk in bytes.
func (d *primaryDisk) Size() int64 { return d.dev.Size() }

// wake makes all waiters look again.
func (d *primaryDisk) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cond.Broadcast()
}

// unlink ends the link, if there is one.
func (d *primaryDisk) unlink() {
	d.mu.Lock()
	l := d.link
	d.mu.Unlock()
	if l != nil {
		l.fail(ErrDetached)
	}
}

// stop ends the link and allows no other.
func (d *primaryDisk) stop() {
	d.unlink()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.cond.Broadcast()
}

// A Link is the connection of a Mirror or a Shared to a Replica, for one
// session. Its methods may be called by any goroutine.
type Link struct {
	disk *primaryDisk
	conn io.ReadWriteCloser
	lost func(error)
	wg   sync.WaitGroup
	done chan struct{} // closed by fail

	session session

	// Guarded by disk.mu.
	epoch    uint64 // the open one
	open     []byte // records not yet in queue
	records  uint64 // in open
	queue    []segment
	queued   int64 // bytes in open and queue
	free     [][]byte
	idle     bool // the sender waits for records
	progress Progress
	err      error
}

// A session is the part of a Link that differs between a Mirror and a Shared.
// All methods but committed, verified and hashes are called with disk.mu held.
type session interface {
	// sealed is called before the seal of an epoch is sent. An error prevents
	// that.
	sealed(epoch uint64) error
	// acked is called when the backup has acknowledged an epoch.
	acked(epoch uint64)
	// unacked returns how many bytes of writes are in epochs that the backup
	// has not acknowledged, and the limit.
	unacked() (n, limit int64)
	// committed is called when the replica holds an epoch no more.
	committed(epoch uint64) error
	// verified is called with the replica's answer to a VERIFY.
	verified(off int64, hash []byte) error
	// hashes is called with the hashes that the replica sent of its disk from
	// offset off. It must not use b after the replica is asked again.
	hashes(off int64, b []byte) error
}

// A segment is a run of records that is sent at once. With a seal, they are the
// last ones of that epoch.
type segment struct {
	b       []byte
	records uint64
	seal    uint64
}

// attach makes a link over conn and starts its goroutines. It fails if there is
// a link. begin is called with mu held.
func (d *primaryDisk) attach(conn io.ReadWriteCloser, o Options, begin func(*Link) (session, error)) (*Link, error) {
	l := &Link{disk: d, conn: conn, lost: o.Lost, epoch: 1, progress: Progress{Total: d.dev.Size()}, done: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, ErrDetached
	case d.link != nil:
		return nil, errors.New("diskrepl: the disk is being replicated already")
	}
	var err error
	if l.session, err = begin(l); err != nil {
		return nil, err
	}
	d.link = l
	l.wg.Go(l.send)
	l.wg.Go(l.receive)
	return l, nil
}

// Detach ends the session. It returns when nothing more is sent.
func (l *Link) Detach() {
	l.fail(ErrDetached)
	l.wg.Wait()
}

// fail ends the link.
func (l *Link) fail(err error) {
	l.disk.mu.Lock()
	first := l.err == nil
	if first {
		l.err = err
		if l.disk.link == l {
			l.disk.link = nil
		}
		l.open, l.queue, l.free, l.queued = nil, nil, nil, 0
		l.disk.cond.Broadcast()
	}
	l.disk.mu.Unlock()
	if first {
		close(l.done)
		l.conn.Close()
		if !errors.Is(err, ErrDetached) {
			go l.lost(err)
		}
	}
}

// Seal ends the open epoch, whose number must be the given one, and opens the
// next. It does not wait for the backup. Call it while the domain is suspended.
// It fails before the disks are in sync.
func (l *Link) Seal(epoch uint64) error {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case !l.progress.Synced:
		return errors.New("diskrepl: seal before the disks are in sync")
	case epoch != l.epoch:
		return fmt.Errorf("diskrepl: seal of epoch %d while %d is open", epoch, l.epoch)
	}
	if err := l.session.sealed(epoch); err != nil {
		return err
	}
	l.cut(epoch)
	l.epoch++
	return nil
}

// Release says that the backup has acknowledged an epoch.
func (l *Link) Release(epoch uint64) {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	if epoch < l.epoch && l.err == nil {
		l.session.acked(epoch)
		l.disk.cond.Broadcast()
	}
}

// Progress returns the progress of the first copy.
func (l *Link) Progress() Progress {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	return l.progress
}

// Unacked returns how many bytes of writes are in epochs that the backup holds,
// or has not acknowledged, and the limit at which writers wait.
func (l *Link) Unacked() (held, limit int64) {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	return l.session.unacked()
}

// AwaitSync waits until the disks are in sync. It returns an error if the link
// ends before.
func (l *Link) AwaitSync() error {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	for l.err == nil && !l.progress.Synced {
		l.disk.cond.Wait()
	}
	return l.err
}

// synced ends the first copy.
func (l *Link) synced() {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	if l.err == nil {
		l.append(record{typ: recSynced, epoch: l.epoch}, nil)
		l.progress.Synced = true
		l.disk.cond.Broadcast()
	}
}

// append adds a record to the open segment. It is called with disk.mu held.
func (l *Link) append(r record, body []byte) {
	l.open = append(r.append(l.open), body...)
	l.records++
	l.queued += headerSize + int64(len(body))
	if len(l.open) >= segmentSize {
		l.cut(0)
	} else if l.idle {
		l.disk.cond.Broadcast()
	}
}

// cut queues the open segment, with the seal of an epoch if that is not 0. It
// is called with disk.mu held.
func (l *Link) cut(seal uint64) {
	l.queue = append(l.queue, segment{l.open, l.records, seal})
	l.open, l.records = nil, 0
	if n := len(l.free); n > 0 {
		l.open, l.free = l.free[n-1][:0], l.free[:n-1]
	}
	l.disk.cond.Broadcast()
}

// send sends segments until the link ends. It runs on one goroutine per link.
func (l *Link) send() {
	var s sum
	d := l.disk
	for {
		d.mu.Lock()
		for l.err == nil && len(l.queue) == 0 && len(l.open) == 0 {
			l.idle = true
			d.cond.Wait()
		}
		l.idle = false
		l.gather()
		if l.err != nil {
			d.mu.Unlock()
			return
		}
		if len(l.queue) == 0 {
			l.cut(0)
		}
		seg := l.queue[0]
		l.queue = l.queue[1:]
		d.mu.Unlock()

		s.records += seg.records
		send := func(b []byte) error {
			if _, err := l.conn.Write(b); err != nil {
				return fmt.Errorf("diskrepl: send: %w", err)
			}
			return nil
		}
		var err error
		for part := range slices.Chunk(seg.b, cached) {
			s.add(0, part) // first, so that it is in the processor's cache when it is sent
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
		d.mu.Lock()
		l.queued -= int64(len(seg.b))
		if len(l.free) < freeSegments && cap(seg.b) <= 8*segmentSize {
			l.free = append(l.free, seg.b)
		}
		d.cond.Broadcast()
		d.mu.Unlock()
	}
}

// gather waits for a whole segment or a seal, for gatherTime at most. It is
// called with disk.mu held.
func (l *Link) gather() {
	d, late := l.disk, false
	if l.err != nil || len(l.queue) > 0 {
		return
	}
	defer time.AfterFunc(gatherTime, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		late = true
		d.cond.Broadcast()
	}).Stop()
	for !late && l.err == nil && len(l.queue) == 0 {
		d.cond.Wait()
	}
}

// receive handles the replica's records: hashes of its disk, or why it failed.
// It runs on one goroutine per link.
func (l *Link) receive() {
	r := newReader(l.conn, tlsRecord)
	var body []byte
	get := func(n int) []byte {
		if cap(body) < n {
			body = make([]byte, n)
		}
		return body[:n]
	}
	for {
		rec, b, err := r.next(get)
		if err == nil {
			switch rec.typ {
			case recHashes:
				err = l.session.hashes(int64(rec.off), b)
			case recCommitted:
				err = l.session.committed(rec.off)
			case recVerified:
				err = l.session.verified(int64(rec.off), b)
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

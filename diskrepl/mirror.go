package diskrepl

import "io"

// A Mirror is the primary's disk where each host has a copy of its own. It is a
// Device. Writes go to the primary's copy at once and, while a [Link] is
// attached, to the backup.
type Mirror struct {
	primaryDisk
	quick quickDevice // nil if the Device is none

	// Guarded by mu.
	dirty   *dirtyLog      // nil before it is needed
	session *mirrorSession // of link
}

// NewMirror returns a Mirror of dev without a link. It passes all requests on
// to dev.
func NewMirror(dev Device) *Mirror {
	m := &Mirror{}
	m.init(dev)
	m.quick, _ = dev.(quickDevice)
	return m
}

// Track keeps the record of changed chunks in mem, which has [DirtySize] bytes
// and outlives this process. With this record the first copy of a later session
// sends only what a copy that is slightly behind lacks. Call Track before any
// other method.
func (m *Mirror) Track(mem []byte) { m.dirty = newDirtyLog(mem, m.dev.Size()) }

// Attach begins a session over conn, which the Link closes: the first copy
// starts, and all writes are sent, beginning with epoch 1. It fails if the
// Mirror has a link, and returns [ErrDetached] after Stop.
func (m *Mirror) Attach(conn io.ReadWriteCloser, o Options) (*Link, error) {
	return m.attach(conn, o, func(l *Link) (session, error) {
		if m.dirty == nil {
			m.Track(make([]byte, DirtySize(m.dev.Size())))
		}
		m.session = newMirrorSession(m, l, o)
		m.session.begin(o.SyncPoint)
		return m.session, nil
	})
}

// Stop ends the link. No other can be attached.
func (m *Mirror) Stop() { m.stop() }

// ReadAt reads from this host's copy.
func (m *Mirror) ReadAt(p []byte, off int64) error { return m.dev.ReadAt(p, off) }

// TryReadAt reads from this host's copy if that needs no wait, and reports
// whether it did.
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
	return l == nil || l.queued < queueMax/2 && !m.session.full(m.session.limit/2)
}

// WriteAt writes p to this host's copy and sends it to the backup.
func (m *Mirror) WriteAt(p []byte, off int64, fua bool) error {
	return m.change(off, int64(len(p)), func() error { return m.dev.WriteAt(p, off, fua) }, recWrite, fuaFlag(fua), p)
}

// Zero makes a range read as zeroes on both hosts.
func (m *Mirror) Zero(off, n int64, keep, fua bool) error {
	flags := fuaFlag(fua)
	if keep {
		flags |= flagKeep
	}
	return m.change(off, n, func() error { return m.dev.Zero(off, n, keep, fua) }, recZero, flags, nil)
}

// Trim trims a range on both hosts. Until the range is written again, the two
// disks may read differently there.
func (m *Mirror) Trim(off, n int64, fua bool) error {
	return m.change(off, n, func() error { return m.dev.Trim(off, n, fua) }, recTrim, fuaFlag(fua), nil)
}

// Flush flushes this host's copy. At the backup it is a barrier between writes:
// this host's copy is what makes the domain's data durable, and after a
// takeover [Replica.Finish] does.
func (m *Mirror) Flush() error {
	if err := m.dev.Flush(); err != nil {
		return err
	}
	m.mu.Lock()
	again := m.link != nil && m.session.flushed
	m.mu.Unlock()
	if !again { // else there is nothing to keep apart
		m.send(recFlush, 0, 0, 0, nil)
	}
	return nil
}

// change changes a range of this host's copy by do, and then sends the record
// of it. If do fails the domain gets the error, and nothing is sent.
func (m *Mirror) change(off, n int64, do func() error, typ recordType, flags uint8, body []byte) error {
	s := m.lock.Lock(off, n)
	defer m.lock.Unlock(s)
	// The range is marked dirty before the change, in case this process is
	// killed, and by send once more: by then another epoch may be open, and the
	// change belongs to that one.
	m.mu.Lock()
	m.dirty.mark(off, n)
	m.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	m.send(typ, flags, off, n, body)
	return nil
}

// send marks a range dirty and adds a record to the open epoch, if there is a
// link. It waits while the backup has no room.
func (m *Mirror) send(typ recordType, flags uint8, off, n int64, body []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := heldSize + int64(len(body))
	for m.link != nil && m.session.full(size) {
		m.cond.Wait()
	}
	m.dirty.mark(off, n)
	l := m.link
	if l == nil {
		return
	}
	l.append(record{typ, flags, uint32(n), uint64(off), l.epoch}, body)
	m.session.sent[l.epoch%heldEpochs] += size
	m.session.flushed = typ == recFlush
}

package simxen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// A replicatedDisk is a *diskrepl.Mirror or a *diskrepl.Shared.
type replicatedDisk interface {
	diskrepl.Device
	Attach(io.ReadWriteCloser, diskrepl.Options) (*diskrepl.Link, error)
	Stop()
}

// newMirror returns the host's disk as a new disk server serves it.
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

// powered is shared storage as one host sees it: a host without power can't write to it.
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
	// Shared storage is slow at times.
	r := d.h.outside.Rand()
	slow := time.Duration(r%8) * time.Millisecond
	if r>>32%10 == 0 {
		slow *= 10
	}
	time.Sleep(slow)
	return d.do(func() error { return d.Platter.WriteAt(b, off, fua) })
}

func (d powered) Zero(off, n int64, _, fua bool) error { return d.WriteAt(make([]byte, n), off, fua) }

func (d powered) Trim(off, n int64, fua bool) error { return d.WriteAt(make([]byte, n), off, fua) }

// disk returns the domain's disk as its present disk server serves it.
func (d *Domain) disk() replicatedDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mirror
}

// shared returns the disk if it is shared storage, or nil.
func (d *Domain) shared() *diskrepl.Shared {
	s, _ := d.disk().(*diskrepl.Shared)
	return s
}

// RestartDisk kills the domain's disk server and starts a new one.
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

// LeakTo breaks P2: the domain's writes reach that other disk at once.
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

// Disks is a domain's disk as a protector, the process P, sees it: through the disk server.
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
		shared.ReleaseAll() // held since an earlier session, after which this host ran alone
		if err := shared.AwaitReleasedAll(ctx); err != nil {
			return err
		}
	}
	open := wire.DiskOpen{Disk: s.Domain.OfferedDisks()[0]}
	if !open.Shared {
		data := s.P.h.platter.give()
		open.Data, open.Past = data.ID, data.Past
	}
	conn, _, ready, err := wire.OpenDisk(ctx, s.P.Dial(s.To), "sim", session, open)
	if err != nil {
		return err
	}
	s.P.h.outside.sessionBegins(session)
	l, err := m.Attach(conn, diskrepl.Options{
		Session: session, SyncPoint: diskrepl.SyncPoint{Session: ready.MarkSession, Epoch: ready.MarkEpoch},
		Limit: ready.Journal, Lost: lost,
	})
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
	// The disk server notices the death of its protector.
	context.AfterFunc(s.P.Context(), l.Detach)
	return l.AwaitSync()
}

func (s *Disks) current() *diskrepl.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

func (s *Disks) End() {
	if l := s.current(); l != nil {
		l.Detach()
	}
}

func (s *Disks) Progress() []xlft.DiskProgress { return nil }

// Seal is for xlft.Gate.
func (s *Disks) Seal(epoch uint64) error {
	if s.P.Dead() {
		return errDead
	}
	s.Domain.mu.Lock()
	page := bytes.Clone(s.Domain.page(0))
	s.Domain.mu.Unlock()
	s.P.h.outside.epochEnds(epoch, page)
	return s.current().Seal(epoch)
}

func (s *Disks) Release(epoch uint64) error {
	if s.P.Dead() {
		return errDead
	}
	s.P.h.outside.epochReleased(epoch)
	s.current().Release(epoch)
	return nil
}

// ReleaseAll is for xlft.Gate: held writes go to the storage.
func (s *Disks) ReleaseAll() error {
	if s.P.Dead() {
		return errDead
	}
	if shared := s.Domain.shared(); shared != nil {
		return shared.ReleaseAll()
	}
	s.P.h.platter.renew()
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

// Close is for xlft.Gate. The disk server stays.
func (s *Disks) Close() error { return nil }

// Held is for xlft.Gate: the backup's journal has room.
func (s *Disks) Held() (held, limit uint64, err error) { return 0, 0, nil }

// OfferedDisks returns the disks that the protector offers to the backup.
func (d *Domain) OfferedDisks() []wire.Disk {
	return []wire.Disk{{VDev: diskVDev, Size: d.disk().Size(), Shared: d.host.held != nil}}
}

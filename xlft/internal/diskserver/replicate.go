package diskserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// A session replicates the open disks to a backup.
type session struct {
	mu    sync.Mutex
	links map[string]*diskrepl.Link
	err   error
	stop  chan struct{} // closed by end
	done  chan struct{} // closed when Replicate has cleaned up
}

func (v *session) has(vdev string) bool { return v.link(vdev) != nil }

func (v *session) link(vdev string) *diskrepl.Link {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.links[vdev]
}

func (v *session) all() []*diskrepl.Link {
	v.mu.Lock()
	defer v.mu.Unlock()
	var ls []*diskrepl.Link
	for _, l := range v.links {
		ls = append(ls, l)
	}
	return ls
}

// end ends the session. The first error is the reason.
func (v *session) end(err error) {
	v.mu.Lock()
	if v.err == nil {
		v.err = err
		close(v.stop)
	}
	v.mu.Unlock()
}

// An Order asks for the replication of disks in a protector's session.
type Order struct {
	Peer    string      `json:"peer"`
	Session string      `json:"session"`
	Disks   []wire.Disk `json:"disks"`
	// Path is the address that the session's other connections have; "" is any.
	Path string `json:"path,omitempty"`
}

// A Report is the progress of a replication.
type Report struct {
	Disks []xlft.DiskProgress `json:"disks"`
	// Held and Limit are bytes of the disk whose journal at the backup is
	// fullest.
	Held  int64  `json:"held"`
	Limit int64  `json:"limit"`
	Error string `json:"error,omitempty"` // in the last report: why the replication ended
}

// reportEvery is the interval at which a Report is considered.
const reportEvery = 100 * time.Millisecond

// Replicate replicates the disks until ctx ends or an error occurs, and calls
// report when the progress has changed. It ends an earlier replication first.
func (s *Server) Replicate(ctx context.Context, o Order, report func(Report) error) error {
	dial, err := s.Dial(o.Peer)
	if err != nil {
		return err
	}
	v := &session{links: map[string]*diskrepl.Link{}, stop: make(chan struct{}), done: make(chan struct{})}
	defer func() {
		defer close(v.done)
		v.end(diskrepl.ErrDetached)
		for _, l := range v.all() {
			l.Detach()
		}
		s.mu.Lock()
		if s.session == v {
			s.session = nil
		}
		s.mu.Unlock()
	}()
	if err := s.replace(ctx, v); err != nil {
		return err
	}
	ctx = wire.By(ctx, o.Path)
	for _, want := range o.Disks {
		if err := s.link(ctx, v, dial, o.Session, want); err != nil {
			return err
		}
	}
	s.Log.Info("disks are being replicated", zap.String("peer", o.Peer), zap.Int("disks", len(o.Disks)))
	t := time.NewTicker(reportEvery)
	defer t.Stop()
	last := Report{Limit: -1}
	for {
		r := v.report(o.Disks)
		if changed(last, r) {
			if err := report(r); err != nil {
				return err
			}
			last = r
		}
		select {
		case <-v.stop:
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.err
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// changed reports whether a report differs enough to be sent: the protector,
// which gets it, has other work.
func changed(was, is Report) bool {
	if was.Limit != is.Limit || len(was.Disks) != len(is.Disks) || was.Held*4/max(was.Limit, 1) != is.Held*4/max(is.Limit, 1) {
		return true
	}
	for i := range is.Disks {
		if was.Disks[i] != is.Disks[i] {
			return true
		}
	}
	return false
}

// replace ends the current session and makes v the current one.
func (s *Server) replace(ctx context.Context, v *session) error {
	for {
		s.mu.Lock()
		old := s.session
		if old == nil {
			s.session = v
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		old.end(errors.New("another session took its place"))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-old.done:
		}
	}
}

// heldRoom is how many bytes HeldDir's file system must have free.
const heldRoom = 16 << 20

// link connects a disk to the backup.
func (s *Server) link(ctx context.Context, v *session, dial wire.Dialer, id string, want wire.Disk) error {
	s.mu.Lock()
	d := s.open[want.VDev]
	s.mu.Unlock()
	if d == nil {
		return fmt.Errorf("disk %s is not open here", want.VDev)
	}
	// A protector that begins a session owns the domain, so writes that are
	// still held are released.
	if d.shared != nil {
		if err := d.shared.ReleaseAll(); err != nil {
			return err
		}
		if err := d.shared.AwaitReleasedAll(ctx); err != nil {
			return fmt.Errorf("disk %s: write what was held: %w", want.VDev, err)
		}
	}
	if xlft.Sector(want.Sector) != d.sector {
		return fmt.Errorf("disk %s: it was offered with sectors of %d bytes, and has %d", want.VDev, xlft.Sector(want.Sector), d.sector)
	}
	open := wire.DiskOpen{Disk: want}
	if d.shared == nil {
		data, err := s.giveData(want.VDev)
		if err != nil {
			return fmt.Errorf("disk %s: %w", want.VDev, err)
		}
		open.Data, open.Past = data.ID, data.Past
	}
	conn, hello, ready, err := wire.OpenDisk(ctx, dial, s.Software, id, open)
	if err != nil {
		return err
	}
	if err := knowsSectors(d.sector, hello.Features); err != nil {
		conn.Close()
		return fmt.Errorf("disk %s: %w", want.VDev, err)
	}
	if d.shared != nil {
		room, err := s.held(want.VDev).Room()
		if err == nil && room < heldRoom {
			err = fmt.Errorf("%s has %d MiB free, and writes that are held need %d at least", s.HeldDir, room>>20, heldRoom>>20)
		}
		if err != nil {
			conn.Close()
			return err
		}
		ready.Journal = min(ready.Journal, room/4*3)
	}
	l, err := d.repl.Attach(conn, diskrepl.Options{Session: id, SyncPoint: diskrepl.SyncPoint{Session: ready.MarkSession, Epoch: ready.MarkEpoch}, Limit: ready.Journal, Rate: int64(s.Config.SyncRate), Verify: slices.Contains(hello.Features, wire.FeatureVerify), Lost: func(err error) {
		v.end(fmt.Errorf("disk %s: %w", want.VDev, err))
	}})
	if err != nil {
		conn.Close()
		return err
	}
	v.mu.Lock()
	v.links[want.VDev] = l
	v.mu.Unlock()
	return nil
}

func (v *session) report(disks []wire.Disk) Report {
	var r Report
	for _, d := range disks {
		l := v.link(d.VDev)
		if l == nil {
			continue
		}
		r.Disks = append(r.Disks, xlft.DiskProgress{VDev: d.VDev, Progress: l.Progress()})
		held, limit := l.Unacked()
		if r.Limit == 0 || held*r.Limit > r.Held*limit {
			r.Held, r.Limit = held, limit
		}
	}
	return r
}

// current returns the session's links.
func (s *Server) current() ([]*diskrepl.Link, error) {
	s.mu.Lock()
	v := s.session
	s.mu.Unlock()
	if v == nil {
		return nil, errors.New("the disks are not being replicated")
	}
	return v.all(), nil
}

// Seal ends an epoch of all disks that are being replicated.
func (s *Server) Seal(epoch uint64) error {
	ls, err := s.current()
	for _, l := range ls {
		if err == nil {
			err = l.Seal(epoch)
		}
	}
	return err
}

// Release says that the backup has acknowledged an epoch.
func (s *Server) Release(epoch uint64) error {
	ls, err := s.current()
	for _, l := range ls {
		l.Release(epoch)
	}
	return err
}

// ReleaseAll releases the writes that are held of all disks, and holds nothing
// back any more. It does not wait until the storage has them.
func (s *Server) ReleaseAll() error {
	s.runsAlone()
	var all error
	for _, d := range s.shared() {
		all = errors.Join(all, d.ReleaseAll())
	}
	return all
}

// Discard discards the writes that are held of all disks, and gives the disks
// up.
func (s *Server) Discard() error {
	for _, d := range s.shared() {
		d.GiveUp()
	}
	return nil
}

// Drain waits until the storage has every epoch that was released.
func (s *Server) Drain(ctx context.Context) error {
	for _, d := range s.shared() {
		if err := d.Drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

// shared returns the open disks that both hosts see.
func (s *Server) shared() (all []*diskrepl.Shared) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.open {
		if d.shared != nil {
			all = append(all, d.shared)
		}
	}
	return all
}

// Package diskserver serves a domain's disks on the host that runs it: to the
// kernel as /dev/nbdN, to others on a unix socket, and to the backup as a
// stream of what is written.
//
// The one rule a caller must know: a Server outlives the protector. A domain's
// disk works without a backup, a receiver or a protector, as long as its Server
// runs.
package diskserver

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl"
	"xlft/diskrepl/blockfile"
	"xlft/diskrepl/nbd"
	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/wire"
)

// A Server serves the disks of one domain.
type Server struct {
	Config   config.Domain
	Software string
	// Dial returns the Dialer for a peer of that name.
	Dial func(peer string) (wire.Dialer, error)
	// Record returns what is recorded of this host's copy of a disk, SaveRecord
	// records it.
	Record     func(vdev string) (xlft.DiskRecord, error)
	SaveRecord func(vdev string, r xlft.DiskRecord) error
	Log        *zap.Logger
	// Owned returns the record of who owns the domain. If by it the backup may have
	// taken the domain over in an earlier boot of this host, the backup is asked
	// before a disk is opened. Nil: nobody is asked.
	Owned func() (xlft.Ownership, error)
	Boot  string // names this boot of the host, as the record does
	// AttachedFile is the name of a file that records which disks are block
	// devices of this host, for the successor of a process that was killed. ""
	// for none.
	AttachedFile string
	// HeldDir is a directory, best in memory, for writes that are held back
	// from shared storage. It outlives this process.
	HeldDir string
	// DirtyDir is a directory in memory for the records of what the backup's
	// copies lack. "" for none: the records end with the process then.
	DirtyDir string

	// Gone reports whether a user of a disk, by its name, is there no more, though
	// it did not detach it. Nil: all are there.
	Gone func(name string) bool

	exports nbd.Server // to the kernel
	clients nbd.Server // on the socket
	devices devices    // in tests another than the kernel's

	records   sync.Mutex     // excludes a second change of a record
	recording sync.WaitGroup // of runsAlone
	alone     sync.Map       // vdev: runsAlone has not recorded it yet

	mu      sync.Mutex
	open    map[string]*disk
	lost    map[string]*lostDisk // attached, and not served now
	session *session
	idle    chan struct{} // closed when the last disk was detached
	closed  bool
}

// A disk is an open disk.
type disk struct {
	vdev   string
	file   *blockfile.File
	repl   replicated
	shared *diskrepl.Shared // repl, if both hosts see the storage; else nil
	dirty  *dirtyFile       // nil if there is none
	kernel blockDevice      // nil if it is none of this host
	users  users            // of kernel; empty if they are not known
	sector int              // bytes of a sector as the domain sees it
	socket bool             // clients of the socket have it
	unused bool             // detached, and kept open for the writes that it holds
}

// replicated is a *diskrepl.Mirror or a *diskrepl.Shared.
type replicated interface {
	diskrepl.Device
	Attach(io.ReadWriteCloser, diskrepl.Options) (*diskrepl.Link, error)
	Stop()
}

// holding returns what the disk holds back: nothing if it is not shared.
func (d *disk) holding() diskrepl.Holding {
	if d.shared == nil {
		return diskrepl.Holding{}
	}
	return d.shared.Holding()
}

// held returns the store of writes that are held back from a shared disk.
func (s *Server) held(vdev string) diskrepl.EpochDir {
	return diskrepl.EpochDir(filepath.Join(s.HeldDir, vdev))
}

// New returns a server without open disks.
func New(conf config.Domain, log *zap.Logger) *Server {
	s := &Server{Config: conf, Log: log, open: map[string]*disk{}, lost: map[string]*lostDisk{}, idle: make(chan struct{})}
	s.devices = kernelDevices{&s.exports}
	s.exports.Log = func(client string, err error) {
		log.Warn("a client's connection ended", zap.String("client", client), zap.Error(err))
	}
	s.clients.Log = s.exports.Log
	s.clients.HangUp = time.Second // the domain's other disks wait meanwhile
	return s
}

// Idle returns a channel that is closed when the last disk has been detached.
// The server is not needed any more then, and opens no other disk.
func (s *Server) Idle() <-chan struct{} { return s.idle }

// openDisk opens a disk unless it is open. again says that an earlier process
// had it open and nobody else since. sector is the size of the sectors that a domain
// sees already; 0: none does. It is called with mu held.
func (s *Server) openDisk(vdev string, again bool, sector int) (*disk, error) {
	if d := s.open[vdev]; d != nil {
		d.unused = false
		return d, nil
	}
	conf, err := s.Config.Disk(vdev)
	if err != nil {
		return nil, err
	}
	if s.closed {
		return nil, errClosed
	}
	rec, err := s.Record(vdev)
	if err != nil {
		return nil, err
	}
	if st := rec.State; st != "" && st != xlft.UpToDate {
		return nil, fmt.Errorf("%s is a copy (%s) that another host keeps or kept here: the domain does not run from it. If that host is lost for good and the copy is \"consistent\", \"xlft disk promote %s\" makes it the disk", conf.Path, st, s.Config.Name)
	}
	f, err := openConfigured(conf)
	if err != nil {
		return nil, err
	}
	d := &disk{vdev: vdev, file: f, users: users{}, sector: sector}
	if err := s.chooseSector(d, conf, rec); err != nil {
		f.Close()
		return nil, err
	}
	if !again && !conf.Shared {
		if err := s.newData(vdev); err != nil { // the domain begins to write to it
			f.Close()
			return nil, err
		}
	}
	if conf.Shared {
		if d.shared, err = diskrepl.NewShared(f, s.held(vdev)); err != nil {
			f.Close()
			return nil, err
		}
		d.repl = d.shared
		if h := d.holding(); h.On {
			s.Log.Warn("going on with writes that an earlier process held", zap.String("vdev", vdev), zap.Int64("bytes", h.Bytes), zap.Bool("freed", h.ReleaseAll))
		}
	} else {
		m := diskrepl.NewMirror(f)
		if s.DirtyDir != "" {
			// Without the record the next first copy compares the whole disk.
			if d.dirty, err = openDirty(s.DirtyDir, vdev, diskrepl.DirtySize(f.Size()), again); err != nil {
				s.Log.Warn("no room for the record of what the backup lacks, which would outlive this process: after it ended the whole disk is compared", zap.String("vdev", vdev), zap.Error(err))
			} else {
				m.Track(d.dirty.mem)
			}
		}
		d.repl = m
	}
	if err := s.exports.Add(&nbd.Export{Name: vdev, Description: s.Config.Name, Device: d.repl, Sector: d.sector}); err != nil {
		f.Close()
		return nil, err
	}
	s.open[vdev] = d
	s.Log.Info("disk opened", zap.String("vdev", vdev), zap.String("path", conf.Path), zap.Int64("size", f.Size()), zap.Int("sector", d.sector), zap.Bool("direct", conf.Direct))
	return d, nil
}

// closeDisk closes a disk. It is called with mu held.
func (s *Server) closeDisk(d *disk) error {
	delete(s.open, d.vdev)
	s.exports.Remove(d.vdev)
	s.clients.Remove(d.vdev)
	d.repl.Stop()
	err := d.file.Flush()
	if cerr := d.file.Close(); err == nil {
		err = cerr
	}
	if d.dirty != nil {
		d.dirty.close()
	}
	s.Log.Info("disk closed", zap.String("vdev", d.vdev), zap.Error(err))
	return err
}

// mayOpen is mayServe, unless the disk is open.
func (s *Server) mayOpen(vdev string) error {
	s.mu.Lock()
	known := s.open[vdev] != nil || s.lost[vdev] != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	return s.mayServe(context.Background())
}

var errClosed = fmt.Errorf("this server is %w: ask its successor", control.ErrEnding)

// endIfIdle ends the server if it has no disk any more. It is called with mu
// held.
func (s *Server) endIfIdle() {
	if len(s.open) == 0 && len(s.lost) == 0 && !s.closed {
		s.closed = true
		close(s.idle)
	}
}

// closeLater closes a disk when it holds nothing back any more, unless it is in
// use again by then.
func (s *Server) closeLater(d *disk) {
	d.shared.AwaitReleasedAll(context.Background()) // or it was given up, or the server ends
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.unused && !s.closed && s.open[d.vdev] == d {
		s.finish(d)
	}
}

// lastWrites bounds how long Close waits for released writes to reach shared
// storage: the host may be shutting down, and what is held would be lost.
const lastWrites = 45 * time.Second

// Close ends the work of this process. Attached devices stay: the kernel waits
// for a successor, which calls Recover.
func (s *Server) Close() {
	s.recording.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.session != nil {
		s.session.end(diskrepl.ErrDetached)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastWrites)
	defer cancel()
	for _, d := range s.open {
		if h := d.holding(); h.On && h.ReleaseAll {
			if err := d.shared.AwaitReleasedAll(ctx); err != nil {
				s.Log.Error("the storage has not got all that was held; the next server goes on", zap.String("vdev", d.vdev), zap.Error(err))
			}
		}
		s.closeDisk(d)
	}
}

// DiskStatus is the status of a disk for an operator.
type DiskStatus struct {
	VDev     string             `json:"vdev"`
	Path     string             `json:"path"`
	Size     int64              `json:"size"`
	Sector   int                `json:"sector"` // bytes, as the domain sees it
	Device   string             `json:"device,omitempty"`
	Users    []string           `json:"users,omitempty"`
	Shared   bool               `json:"shared,omitempty"`
	Holding  *diskrepl.Holding  `json:"holding,omitempty"`  // of shared storage
	Progress *diskrepl.Progress `json:"progress,omitempty"` // of the first copy, in a session
	Error    string             `json:"error,omitempty"`    // why the disk, whose server died, is not served again
}

// Status returns a snapshot of the open disks.
func (s *Server) Status() []DiskStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]DiskStatus, 0, len(s.open))
	for _, d := range s.open {
		st := DiskStatus{VDev: d.vdev, Path: d.file.Name(), Size: d.file.Size(), Sector: d.sector}
		if d.shared != nil {
			h := d.holding()
			st.Shared, st.Holding = true, &h
		}
		if d.kernel != nil {
			st.Device = d.kernel.Path()
			st.Users = slices.Sorted(maps.Keys(d.users))
		}
		if d.socket {
			st.Users = append(st.Users, socket)
		}
		if s.session != nil {
			if l := s.session.link(d.vdev); l != nil {
				p := l.Progress()
				st.Progress = &p
			}
		}
		all = append(all, st)
	}
	for vdev, l := range s.lost {
		all = append(all, DiskStatus{VDev: vdev, Device: nbd.DevicePath(l.Index), Error: l.err.Error()})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].VDev < all[j].VDev })
	return all
}

// openConfigured opens a disk as its configuration says.
func openConfigured(d config.Disk) (*blockfile.File, error) {
	if d.Shared {
		return blockfile.OpenShared(d.Path)
	}
	return blockfile.Open(d.Path, d.Direct)
}

// Package diskserver serves a domain's disks on the host that runs it: to the
// kernel as /dev/nbdN, to others on a unix socket, and to the backup as a
// stream of what is written.
//
// The one rule a caller must know: it outlives the protector. A domain's disk
// works without a backup, a receiver and a protector; only the Server's own end
// takes it away.
package diskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// A Server has the disks of one domain.
type Server struct {
	Config   config.Domain
	Software string
	// Dial returns the way to a peer of that name.
	Dial func(peer string) (wire.Dialer, error)
	// State says what this host's copy of a disk is good for.
	State func(vdev string) (xlft.DiskState, error)
	Log   *zap.Logger
	// Attached is a file that says which disks are block devices of this host,
	// for the process that comes after this one was killed. "" for none.
	Attached string
	// Held is a directory, best in memory, for what is held back from storage
	// that both hosts see. It outlives this process.
	Held string
	// Dirty is a directory, in memory, for what is known to differ from the
	// backup's copies. "" for none: then a process that dies takes it along.
	Dirty string

	exports nbd.Server

	mu      sync.Mutex
	open    map[string]*disk
	session *session
	idle    chan struct{} // closed when the last disk was detached
	retired bool
}

// A disk is one that is open.
type disk struct {
	vdev   string
	file   *blockfile.File
	repl   replicated
	shared *diskrepl.Shared // repl, if both hosts see the storage; else nil
	dirty  *dirtyFile       // nil if there is none
	kernel *nbd.KernelDevice
	unused bool // detached, and kept open for what is held
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
	return diskrepl.EpochDir(filepath.Join(s.Held, vdev))
}

// New returns a server without open disks.
func New(conf config.Domain, log *zap.Logger) *Server {
	s := &Server{Config: conf, Log: log, open: map[string]*disk{}, idle: make(chan struct{})}
	s.exports.Log = func(client string, err error) {
		log.Warn("a client's connection ended", zap.String("client", client), zap.Error(err))
	}
	return s
}

// Idle is closed when the last disk has been detached: the server is not
// needed any more, and takes no new disks.
func (s *Server) Idle() <-chan struct{} { return s.idle }

// openDisk opens a disk that is not; again if the kernel has kept it for this
// host since the process before this one died. It is called with the lock.
func (s *Server) openDisk(vdev string, again bool) (*disk, error) {
	if d := s.open[vdev]; d != nil {
		d.unused = false
		return d, nil
	}
	conf, err := s.Config.Disk(vdev)
	if err != nil {
		return nil, err
	}
	if s.retired {
		return nil, errRetired
	}
	st, err := s.State(vdev)
	if err != nil {
		return nil, err
	}
	if st != "" && st != xlft.DiskActive {
		return nil, fmt.Errorf("%s is a copy (%s) that another host keeps or kept here: the domain does not run from it. If that host is lost for good and the copy is a \"replica\", \"xlft disk promote %s\" makes it the disk", conf.Path, st, s.Config.Name)
	}
	f, err := openConfigured(conf)
	if err != nil {
		return nil, err
	}
	d := &disk{vdev: vdev, file: f}
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
		if s.Dirty != "" {
			if d.dirty, err = openDirty(s.Dirty, vdev, diskrepl.DirtySize(f.Size()), again); err != nil {
				f.Close()
				return nil, err
			}
			m.Track(d.dirty.mem)
		}
		d.repl = m
	}
	if err := s.exports.Add(&nbd.Export{Name: vdev, Description: s.Config.Name, Device: d.repl}); err != nil {
		f.Close()
		return nil, err
	}
	s.open[vdev] = d
	s.Log.Info("disk opened", zap.String("vdev", vdev), zap.String("path", conf.Path), zap.Int64("size", f.Size()), zap.Bool("direct", conf.Direct))
	return d, nil
}

// closeDisk is called with the lock.
func (s *Server) closeDisk(d *disk) error {
	delete(s.open, d.vdev)
	s.exports.Remove(d.vdev)
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

var errRetired = fmt.Errorf("this server is %w: ask its successor", control.ErrEnding)

// Attach makes a disk a block device of this host, or finds the one it is.
func (s *Server) Attach(vdev string) (device string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.openDisk(vdev, false)
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", vdev, err)
	}
	if d.kernel == nil {
		d.kernel, err = s.exports.Attach(vdev)
		if err != nil {
			s.closeDisk(d)
			return "", err
		}
		s.Log.Info("disk attached", zap.String("vdev", vdev), zap.String("device", d.kernel.Path()))
		if err := s.note(); err != nil {
			return "", err
		}
	}
	return d.kernel.Path(), nil
}

// note writes down what is attached. It is called with the lock.
func (s *Server) note() error {
	if s.Attached == "" {
		return nil
	}
	at := map[string]int{}
	for vdev, d := range s.open {
		if d.kernel != nil {
			at[vdev] = d.kernel.Index
		}
	}
	b, err := json.Marshal(at)
	if err == nil {
		err = os.WriteFile(s.Attached+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(s.Attached+".new", s.Attached)
	}
	if err != nil {
		return fmt.Errorf("write down what is attached: %w", err)
	}
	return nil
}

// Recover serves again what a process before this one had attached when it was
// killed, and goes on with what it held.
func (s *Server) Recover() error {
	b, err := os.ReadFile(s.Attached)
	at := map[string]int{}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil {
		err = json.Unmarshal(b, &at)
	}
	if err != nil {
		return fmt.Errorf("read what was attached: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for vdev, index := range at {
		d, err := s.openDisk(vdev, true)
		if err == nil {
			d.kernel, err = s.exports.Reattach(vdev, index)
		}
		if err != nil {
			return err
		}
		s.Log.Warn("serving a disk again whose server died", zap.String("vdev", vdev), zap.String("device", d.kernel.Path()))
	}
	for vdev, conf := range s.Config.Disks {
		left := false
		if conf.Shared {
			if left, err = s.held(vdev).Any(); err != nil {
				return err
			}
		}
		if !left || s.open[vdev] != nil {
			continue
		}
		d, err := s.openDisk(vdev, true)
		if err != nil {
			return err
		}
		d.unused = true
		go s.closeLater(d)
	}
	return nil
}

// Open serves a disk to NBD clients alone.
func (s *Server) Open(vdev string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.openDisk(vdev, false); err != nil {
		return fmt.Errorf("open %s: %w", vdev, err)
	}
	return nil
}

// Detach undoes Attach or Open, and closes the disk.
func (s *Server) Detach(vdev string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.open[vdev]
	if d == nil {
		return nil
	}
	if d.kernel != nil {
		if err := d.kernel.Detach(); err != nil {
			return err
		}
		s.Log.Info("disk detached", zap.String("vdev", vdev), zap.String("device", d.kernel.Path()))
	}
	if s.session != nil && s.session.has(vdev) {
		s.session.end(fmt.Errorf("disk %s was detached", vdev))
	}
	d.kernel = nil
	if h := d.holding(); h.On && !h.GivenUp {
		// The protector will say whether it goes to the storage.
		s.Log.Warn("a disk without a user stays open for what it holds", zap.String("vdev", vdev), zap.Int64("bytes", h.Bytes))
		d.unused = true
		go s.closeLater(d)
		return s.note()
	}
	return s.finish(d)
}

// finish closes a disk that is not used any more. It is called with the lock.
func (s *Server) finish(d *disk) error {
	if d.dirty != nil {
		// Others may change it from here on.
		d.dirty.remove()
	}
	err := errors.Join(s.closeDisk(d), s.note())
	if len(s.open) == 0 && !s.retired {
		s.retired = true
		close(s.idle)
	}
	return err
}

// closeLater closes a disk when it holds nothing back any more, unless it is
// used again by then.
func (s *Server) closeLater(d *disk) {
	d.shared.AwaitReleasedAll(context.Background()) // or it was given up, or the server ends
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.unused && !s.retired && s.open[d.vdev] == d {
		s.finish(d)
	}
}

// lastWrites bounds how long the end waits for writes that are on their way to
// shared storage: the host may be about to go down, and what is held with it.
const lastWrites = 45 * time.Second

// Close ends the work of this process. What is attached stays so: the kernel
// waits for a successor, who finds it by Recover.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
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

// DiskStatus is what an operator sees of a disk.
type DiskStatus struct {
	VDev     string             `json:"vdev"`
	Path     string             `json:"path"`
	Size     int64              `json:"size"`
	Device   string             `json:"device,omitempty"`
	Shared   bool               `json:"shared,omitempty"`
	Holding  *diskrepl.Holding  `json:"holding,omitempty"`  // of shared storage
	Progress *diskrepl.Progress `json:"progress,omitempty"` // of the first copy, in a session
}

// Status returns the open disks.
func (s *Server) Status() []DiskStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]DiskStatus, 0, len(s.open))
	for _, d := range s.open {
		st := DiskStatus{VDev: d.vdev, Path: d.file.Name(), Size: d.file.Size()}
		if d.shared != nil {
			h := d.holding()
			st.Shared, st.Holding = true, &h
		}
		if d.kernel != nil {
			st.Device = d.kernel.Path()
		}
		if s.session != nil {
			if l := s.session.link(d.vdev); l != nil {
				p := l.Progress()
				st.Progress = &p
			}
		}
		all = append(all, st)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].VDev < all[j].VDev })
	return all
}

// A session replicates the open disks to a backup.
type session struct {
	mu    sync.Mutex
	links map[string]*diskrepl.Link
	err   error
	over  chan struct{} // closed when it is to end
	done  chan struct{} // closed when it has, and the Server knows it no more
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

// end ends it for a reason; the first one counts.
func (v *session) end(err error) {
	v.mu.Lock()
	if v.err == nil {
		v.err = err
		close(v.over)
	}
	v.mu.Unlock()
}

// Order asks for the replication of disks in a protector's session.
type Order struct {
	Peer    string      `json:"peer"`
	Session string      `json:"session"`
	Disks   []wire.Disk `json:"disks"`
}

// Report is what a replication says of itself, again and again.
type Report struct {
	Disks []primary.DiskProgress `json:"disks"`
	// Held and Limit are of the disk whose journal at the backup is fullest.
	Held  int64  `json:"held"`
	Limit int64  `json:"limit"`
	Error string `json:"error,omitempty"` // of the last report: why it ended
}

// reportEvery is how often a replication is looked at for a report.
const reportEvery = 100 * time.Millisecond

// Replicate copies the disks until ctx ends or something breaks, and reports on
// the way. A replication that is under way is ended by a new one.
func (s *Server) Replicate(ctx context.Context, o Order, report func(Report) error) error {
	dial, err := s.Dial(o.Peer)
	if err != nil {
		return err
	}
	v := &session{links: map[string]*diskrepl.Link{}, over: make(chan struct{}), done: make(chan struct{})}
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
	for _, want := range o.Disks {
		if err := s.link(ctx, v, dial, o.Session, want); err != nil {
			return err
		}
	}
	s.Log.Info("disks are being replicated", zap.String("peer", o.Peer), zap.Int("disks", len(o.Disks)))
	t := time.NewTicker(reportEvery)
	defer t.Stop()
	said := Report{Limit: -1}
	for {
		r := v.report(o.Disks)
		if changed(said, r) {
			if err := report(r); err != nil {
				return err
			}
			said = r
		}
		select {
		case <-v.over:
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.err
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// changed reports whether a report is worth sending: it goes to a process that
// has a domain to watch.
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

// replace makes v the session once the one before it has ended.
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

// heldRoom is what the file system for writes that are held must have free.
const heldRoom = 16 << 20

// link opens the connection of a disk and attaches it.
func (s *Server) link(ctx context.Context, v *session, dial wire.Dialer, id string, want wire.Disk) error {
	s.mu.Lock()
	d := s.open[want.VDev]
	s.mu.Unlock()
	if d == nil {
		return fmt.Errorf("disk %s is not open here", want.VDev)
	}
	// A protector that begins a session is alone with the domain: what an
	// earlier one left held is the disk's.
	if d.shared != nil {
		if err := d.shared.ReleaseAll(); err != nil {
			return err
		}
		if err := d.shared.AwaitReleasedAll(ctx); err != nil {
			return fmt.Errorf("disk %s: write what was held: %w", want.VDev, err)
		}
	}
	conn, ready, err := wire.DialDisk(ctx, dial, s.Software, id, want)
	if err != nil {
		return err
	}
	if d.shared != nil {
		room, err := s.held(want.VDev).Room()
		if err == nil && room < heldRoom {
			err = fmt.Errorf("%s has %d MiB free, and writes that are held need %d at least", s.Held, room>>20, heldRoom>>20)
		}
		if err != nil {
			conn.Close()
			return err
		}
		ready.Journal = min(ready.Journal, room/4*3)
	}
	l, err := d.repl.Attach(conn, diskrepl.Options{Session: id, SyncPoint: diskrepl.SyncPoint{Session: ready.MarkSession, Epoch: ready.MarkEpoch}, Limit: ready.Journal, Rate: int64(s.Config.SyncRate), Lost: func(err error) {
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
		r.Disks = append(r.Disks, primary.DiskProgress{VDev: d.VDev, Progress: l.Progress()})
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

// Release says that the backup has acked an epoch.
func (s *Server) Release(epoch uint64) error {
	ls, err := s.current()
	for _, l := range ls {
		l.Release(epoch)
	}
	return err
}

// Abandon lets what is held of all disks go to the storage, and holds nothing
// any more. It does not wait.
func (s *Server) Abandon() error {
	var all error
	for _, d := range s.shared() {
		all = errors.Join(all, d.ReleaseAll())
	}
	return all
}

// Discard gives up what is held of all disks, and the disks with it.
func (s *Server) Discard() error {
	for _, d := range s.shared() {
		d.GiveUp()
	}
	return nil
}

// Drain waits until the storage has all that was released.
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

// lastAnswers bounds how long the end waits for answers that are under way.
const lastAnswers = 2 * time.Second

// Serve answers the commands of Client, and NBD clients on a socket of their
// own, until ctx ends.
func (s *Server) Serve(ctx context.Context, commands, clients net.Listener) error {
	mux := http.NewServeMux()
	disk := func(f func(vdev string) (any, error)) func(*http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			return f(r.PathValue("vdev"))
		}
	}
	epoch := func(f func(uint64) error) func(*http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			var e uint64
			if _, err := fmt.Sscan(r.PathValue("epoch"), &e); err != nil {
				return nil, fmt.Errorf("epoch %q: %w", r.PathValue("epoch"), err)
			}
			return nil, f(e)
		}
	}
	control.Handle(mux, "GET /status", func(*http.Request) (any, error) { return s.Status(), nil })
	control.Handle(mux, "POST /attach/{vdev}", disk(func(vdev string) (any, error) { return s.Attach(vdev) }))
	control.Handle(mux, "POST /open/{vdev}", disk(func(vdev string) (any, error) { return nil, s.Open(vdev) }))
	control.Handle(mux, "POST /detach/{vdev}", disk(func(vdev string) (any, error) { return nil, s.Detach(vdev) }))
	control.Handle(mux, "POST /seal/{epoch}", epoch(s.Seal))
	control.Handle(mux, "POST /release/{epoch}", epoch(s.Release))
	control.Handle(mux, "POST /abandon", func(*http.Request) (any, error) { return nil, s.Abandon() })
	control.Handle(mux, "POST /discard", func(*http.Request) (any, error) { return nil, s.Discard() })
	control.Handle(mux, "POST /drain", func(r *http.Request) (any, error) { return nil, s.Drain(r.Context()) })
	mux.HandleFunc("POST /replicate", s.serveReplicate)
	ctx, cancel := context.WithCancel(ctx)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }, // so that a replication ends
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.exports.Serve(ctx, clients) })
	wg.Go(func() {
		<-ctx.Done()
		// What was asked is answered first: the last detach is what ends ctx.
		limit, cancel := context.WithTimeout(context.Background(), lastAnswers)
		defer cancel()
		srv.Shutdown(limit)
		srv.Close()
	})
	if err := srv.Serve(commands); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveReplicate answers with reports, one JSON value after the other. The
// replication lasts as long as the asker listens.
func (s *Server) serveReplicate(w http.ResponseWriter, r *http.Request) {
	var o Order
	enc := json.NewEncoder(w)
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		enc.Encode(Report{Error: err.Error()})
		return
	}
	flush := http.NewResponseController(w)
	err := s.Replicate(r.Context(), o, func(p Report) error {
		if err := enc.Encode(p); err != nil {
			return err
		}
		return flush.Flush()
	})
	if r.Context().Err() == nil {
		s.Log.Warn("the disks are not replicated any more", zap.Error(err))
		enc.Encode(Report{Error: err.Error()})
	}
}

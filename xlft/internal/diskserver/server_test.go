package diskserver

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskcopy"
	"xlft/xlft/internal/disktest"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// A hostDir is a host's directory, from which a disk server serves.
type hostDir struct{ *disktest.HostDir }

func newHostDir(t *testing.T, fill byte) hostDir {
	t.Helper()
	return hostDir{disktest.New(t, fill)}
}

func (h hostDir) image() []byte { return h.Image("xvda") }

// records has a server use the host's records of its disks.
func (h hostDir) records(s *Server) {
	s.Record = func(vdev string) (xlft.DiskRecord, error) { return h.Store.LoadDisk("web1", vdev) }
	s.SaveRecord = func(vdev string, r xlft.DiskRecord) error { return h.Store.SaveDisk("web1", vdev, r) }
}

// serve starts the domain's disk server, which connects to its peer with dial.
func (h hostDir) serve(dial wire.Dialer) (s *Server, stop func()) {
	h.T.Helper()
	s = New(h.Conf.For("web1"), zap.NewNop())
	s.Software = "test"
	h.records(s)
	s.DirtyDir = DirtyDirOf(h.Dir, "web1")
	s.Dial = func(peer string) (wire.Dialer, error) {
		if peer != "B" {
			return nil, errors.New("no such peer")
		}
		return dial, nil
	}
	s.HeldDir = HeldDirOf(h.Dir, "web1")
	if err := s.Recover(); err != nil {
		h.T.Fatal(err)
	}
	commands, err := control.Listen(CommandSocket(h.Dir, "web1"))
	if err != nil {
		h.T.Fatal(err)
	}
	clients, err := control.Listen(ClientSocket(h.Dir, "web1"))
	if err != nil {
		h.T.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, commands, clients) }()
	return s, func() {
		cancel()
		if err := <-done; err != nil {
			h.T.Error(err)
		}
		s.Close()
	}
}

// The server ends when the last disk is detached. The answer to that request
// still comes: without it the hotplug script would fail.
func TestLastDetachIsAnswered(t *testing.T) {
	h := newHostDir(t, 'a')
	for range 300 {
		s, stop := h.serve(nil)
		over := make(chan struct{})
		go func() {
			<-s.Idle()
			stop()
			close(over)
		}()
		c := NewClient(CommandSocket(h.Dir, "web1"), "", nil)
		if err := c.Open(t.Context(), "xvda"); err != nil {
			t.Fatal(err)
		}
		if err := c.Detach(t.Context(), "xvda", Operator); err != nil {
			t.Fatal(err)
		}
		<-over
	}
}

// A rig is two hosts with a network between them, and a session that protects a
// domain from A to B.
type rig struct {
	t        *testing.T
	a, b     hostDir
	hostB    *simxen.Host
	receiver *backup.Receiver
	copies   *diskcopy.Copies
	client   *Client
	server   *Server // of A
	stop     func()  // stops server
	session  *primary.Session
	ended    chan error
	pa       *simxen.Process
	dial     wire.Dialer

	mu    sync.Mutex
	conns []net.Conn
	gone  bool
}

func newRig(t *testing.T, epoch time.Duration, journal uint64) *rig {
	return newRigOn(t, epoch, journal, false)
}

func newRigOn(t *testing.T, epoch time.Duration, journal uint64, shared bool) *rig {
	t.Helper()
	r := &rig{t: t, a: newHostDir(t, 'a'), b: newHostDir(t, 'b'), ended: make(chan error, 1)}
	if shared {
		for _, h := range []hostDir{r.a, r.b} {
			d := h.Conf.Domains["web1"].Disks
			d["xvda"] = config.Disk{VDev: "xvda", Path: filepath.Join(r.a.Dir, "xvda"), Direct: true, Shared: true}
		}
	}
	// Half of the journal is in a file.
	r.b.Conf.DiskJournal, r.b.Conf.DiskJournalFile = journal/2, journal/2
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.dial = func(ctx context.Context) (net.Conn, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.gone {
			return nil, errors.New("cut")
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			r.conns = append(r.conns, c)
		}
		return c, err
	}
	out, n := simxen.NewOutside(1), simxen.NewNet(0)
	out.NoDisks = true // the session replicates the rig's disk, which the domain does not use
	hostA, hostB := simxen.NewHost(out, n, "A"), simxen.NewHost(out, n, "B")
	pa, pb := hostA.Spawn(), hostB.Spawn()
	r.hostB, r.pa = hostB, pa
	r.copies = &diskcopy.Copies{Config: func() *config.Config { return r.b.Conf }, Store: r.b.Store}
	r.receiver = &backup.Receiver{
		Software: "test", Restorer: &simxen.Restorer{P: pb}, Arbiter: arbiter.None{}, Store: pb.Store(r.b.Store), Log: zap.NewNop(), Disks: r.copies,
		PeerName: func(net.Conn) string { return "A" }, RetryDelay: time.Second, EpochLimit: 1 << 30,
	}
	ctx, cancel := context.WithCancel(context.Background())
	received := make(chan error, 1)
	go func() { received <- r.receiver.Serve(ctx, l) }()
	r.server, r.stop = r.a.serve(r.dial)
	r.client = NewClient(CommandSocket(r.a.Dir, "web1"), "B", []wire.Disk{{VDev: "xvda", Size: disktest.Size, Shared: shared}})
	domain := hostA.Boot("web1", 8)
	r.session = &primary.Session{
		Domain: "web1", Software: "test", Instance: "1", Peer: "B",
		Offer: wire.Offer{UUID: "u", Config: []byte("{}"), MaxMemKiB: 32, Disks: r.client.order.Disks},
		Settings: primary.Settings{Pacing: xlft.Pacing{EpochMax: epoch}, FailureTimeout: 10 * time.Second, AckTimeout: 10 * time.Second,
			SuspendTimeout: time.Second, RetryDelay: 50 * time.Millisecond, SpoolLimit: 1 << 20},
		Guest: pa.Guest(domain), Gates: xlft.Gates{Net: pa.Gate(domain), Disks: r.client}, Arbiter: arbiter.None{}, Store: pa.Store(r.a.Store),
		Dial: r.dial, Log: zap.NewNop(),
	}
	t.Cleanup(func() {
		pa.Terminate()
		<-r.ended
		cancel()
		<-received
		r.stop()
		hostA.Shutdown()
		hostB.Shutdown()
	})
	return r
}

// protect opens the disk and begins the session.
func (r *rig) protect() {
	r.t.Helper()
	if err := r.client.Open(r.t.Context(), "xvda"); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		r.ended <- r.session.Run(r.pa.Context())
		close(r.ended)
	}()
	r.await("protected", func(st primary.Status) bool { return st.Protected })
}

func (r *rig) await(what string, ok func(primary.Status) bool) {
	r.t.Helper()
	patience := time.After(20 * time.Second)
	for {
		changed := r.session.Changed()
		if ok(r.session.Status()) {
			return
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Millisecond):
		case err := <-r.ended:
			r.t.Fatalf("%s: the session ended: %v", what, err)
		case <-patience:
			r.t.Fatalf("%s: %+v", what, r.session.Status())
		}
	}
}

// cut cuts the network between the two hosts for good.
func (r *rig) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = true
	for _, c := range r.conns {
		c.Close()
	}
}

// state returns the recorded state of B's copy of the disk.
func (r *rig) state() xlft.DiskState {
	r.t.Helper()
	st, err := r.b.Store.LoadDisk("web1", "xvda")
	if err != nil {
		r.t.Fatal(err)
	}
	return st.State
}

// A disk in the life of a session: refused where it is not configured, copied,
// written to while checkpoints are taken, taken over as it was at a checkpoint,
// and then served by the other host.
func TestSession(t *testing.T) {
	r := newRig(t, 20*time.Millisecond, 64<<20)
	ctx := t.Context()
	disktest.Refused(t, "open of an unknown disk", r.client.Open(ctx, "xvdb"), "[domain.web1.disk.xvdb]")
	disktest.Refused(t, "seal without a session", r.client.Seal(1), "not being replicated")
	disktest.Refused(t, "check of an unknown disk", r.copies.Check("web1", wire.Disk{VDev: "xvdz", Size: disktest.Size}),
		"[domain.web1.disk.xvdz]")
	disktest.Refused(t, "check of another size", r.copies.Check("web1", wire.Disk{VDev: "xvda", Size: disktest.Size + 1}),
		"has 4194304 bytes, the primary's has 4194305")
	disktest.Refused(t, "check", r.copies.Check("web1", wire.Disk{VDev: "xvda", Size: disktest.Size}), "")

	r.protect()
	if st := r.state(); st == xlft.UpToDate {
		t.Errorf("the copy is %q", st)
	}
	_, err := r.copies.Open("web1", wire.Disk{VDev: "xvda", Size: disktest.Size})
	disktest.Refused(t, "the copy, opened a second time", err, "in use")
	if err := r.server.open["xvda"].repl.WriteAt([]byte("written"), 12345, true); err != nil {
		t.Fatal(err)
	}
	want := r.a.image()
	more := func(n uint64) {
		t.Helper()
		at := r.session.Status().Epoch
		r.await("more epochs", func(st primary.Status) bool { return st.Epoch >= at+n })
	}
	more(2)
	if st := r.state(); st != xlft.Consistent {
		t.Errorf("the copy is %q", st)
	}

	// The disk is detached: protection ends, and comes back with the disk.
	if err := r.client.Detach(ctx, "xvda", Operator); err != nil {
		t.Fatal(err)
	}
	// The first reason, that it was detached, soon gives way to that of the next try.
	r.await("unprotected", func(st primary.Status) bool { return !st.Protected && st.LastError != "" })
	select {
	case <-r.server.Idle():
	case <-time.After(10 * time.Second):
		t.Error("a server without disks is not idle")
	}
	r.stop()
	r.server, r.stop = r.a.serve(r.dial)
	if err := r.client.Open(ctx, "xvda"); err != nil {
		t.Fatal(err)
	}
	r.await("protected again", func(st primary.Status) bool { return st.Protected })
	more(1)

	// A copy is not served before the takeover.
	other, stopOther := r.b.serve(nil)
	defer stopOther()
	disktest.Refused(t, "the backup's server opens the copy", other.Open("xvda"), "does not run from it")
	r.cut()
	patience := time.After(20 * time.Second)
	for r.hostB.Domain("web1") == nil {
		select {
		case <-patience:
			t.Fatalf("no takeover: %+v", r.receiver.Replicas())
		case <-time.After(10 * time.Millisecond):
		}
	}
	if !bytes.Equal(r.b.image(), want) {
		t.Error("the backup's disk is not the primary's")
	}
	disktest.Refused(t, "after the takeover", other.Open("xvda"), "")
}

// A journal that fills up ends epochs early and never loses a write.
func TestFullJournal(t *testing.T) {
	r := newRig(t, time.Hour, 128<<10)
	r.protect()
	m := r.server.open["xvda"].repl
	b := make([]byte, 16<<10)
	for off := int64(0); off < disktest.Size; off += int64(len(b)) {
		for i := range b {
			b[i] = byte(off>>14) + byte(i)
		}
		if err := m.WriteAt(b, off, false); err != nil {
			t.Fatal(err)
		}
	}
	n := r.session.Status().Checkpoints
	if n < disktest.Size/(128<<10) {
		t.Errorf("%d checkpoints for %d bytes through a journal of %d", n, disktest.Size, 128<<10)
	}
	if _, err := r.session.Failover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.b.image(), r.a.image()) {
		t.Error("the backup's disk is not the primary's")
	}
}

// Shared storage gets the domain's writes when their epoch is acked, and not
// before. When the disk server ends, during a session or after it, no write is
// lost.
func TestSharedStorage(t *testing.T) {
	r := newRigOn(t, time.Hour, 64<<20, true)
	ctx := t.Context()
	disktest.Refused(t, "check as a mirror", r.copies.Check("web1", wire.Disk{VDev: "xvda", Size: disktest.Size}),
		`its storage is "mirror" there and "shared" here`)
	r.protect()
	if st := r.state(); st != xlft.Consistent {
		t.Errorf("the backup's disk is %q", st)
	}
	mirror := func() replicated {
		r.server.mu.Lock()
		defer r.server.mu.Unlock()
		return r.server.open["xvda"].repl
	}
	was := r.a.image()
	want := bytes.Clone(was)
	write := func(text string, off int64) {
		t.Helper()
		if err := mirror().WriteAt([]byte(text), off, true); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], text)
	}
	write("written", 12345)
	if !bytes.Equal(r.a.image(), was) {
		t.Error("the storage has a write of an epoch that is not acked")
	}
	st, err := r.client.Status(ctx)
	if err != nil || len(st) != 1 || st[0].Holding == nil || !st[0].Holding.On || st[0].Holding.Bytes == 0 {
		t.Errorf("status %+v, %v", st, err)
	}

	// The server dies. Its successor holds the writes until the protector, which
	// learns of it, runs unprotected; without a user of the disk the successor
	// then ends.
	r.stop()
	for {
		r.server, r.stop = r.a.serve(r.dial)
		err := r.client.Open(ctx, "xvda")
		if err == nil {
			break
		}
		if !errors.Is(err, control.ErrDown) {
			t.Fatal(err)
		}
		<-r.server.Idle()
		r.stop()
	}
	b := make([]byte, 7)
	if err := mirror().ReadAt(b, 12345); err != nil || string(b) != "written" {
		t.Errorf("the domain reads %q, %v", b, err)
	}
	r.await("protected again", func(st primary.Status) bool { return st.Protected && st.LastError != "" })
	if !bytes.Equal(r.a.image(), want) {
		t.Error("the storage lacks what was held when the server died")
	}

	// A server that is stopped after ReleaseAll first writes what it holds: its
	// host may be going down.
	at := r.session.Status().Generation
	write("host goes down", 4096)
	if err := r.client.ReleaseAll(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if !bytes.Equal(r.a.image(), want) {
		t.Error("the storage lacks what was let go before the server ended")
	}
	r.server, r.stop = r.a.serve(r.dial)
	if err := r.client.Open(ctx, "xvda"); err != nil {
		t.Fatal(err)
	}
	r.await("protected once more", func(st primary.Status) bool { return st.Protected && st.Generation > at })

	// The disk is detached while the last epoch is held: the writes go to the
	// storage when the protector releases them.
	write("last", 99999)
	if err := r.client.Detach(ctx, "xvda", Operator); err != nil {
		t.Fatal(err)
	}
	if _, err := r.session.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.server.Idle():
	case <-time.After(10 * time.Second):
		t.Error("the server keeps a disk that nobody uses")
	}
	if !bytes.Equal(r.a.image(), want) {
		t.Error("the storage lacks what was held at the end")
	}
}

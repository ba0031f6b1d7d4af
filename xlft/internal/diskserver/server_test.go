package diskserver

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/store"
	"xlft/xlft/wire"
)

const size = 4 << 20

// A place is a host's directory: a disk, a state, sockets.
type place struct {
	t     *testing.T
	dir   string
	store store.Dir
	conf  *config.Config
}

func newPlace(t *testing.T, fill byte) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "disk") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &place{t: t, dir: dir, store: store.Dir(filepath.Join(dir, "state"))}
	path := filepath.Join(dir, "xvda")
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	p.conf = &config.Config{RunDir: dir, DiskJournal: 64 << 20, Domains: map[string]config.Domain{
		"web1": {Name: "web1", Disks: map[string]config.Disk{"xvda": {VDev: "xvda", Path: path}}},
	}}
	return p
}

func (p *place) image() []byte {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, "xvda"))
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// serve starts the domain's disk server, which reaches its peer by dial.
func (p *place) serve(dial xlft.Dialer) (s *Server, stop func()) {
	p.t.Helper()
	s = New("web1", p.conf.For("web1").Disks, zap.NewNop())
	s.Software = "test"
	s.State = func(vdev string) (xlft.DiskState, error) { return p.store.LoadDisk("web1", vdev) }
	s.Dial = func(peer string) (xlft.Dialer, error) {
		if peer != "B" {
			return nil, errors.New("no such peer")
		}
		return dial, nil
	}
	commands, err := control.Listen(CommandSocket(p.dir, "web1"))
	if err != nil {
		p.t.Fatal(err)
	}
	clients, err := control.Listen(ClientSocket(p.dir, "web1"))
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, commands, clients) }()
	return s, func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
		s.Close()
	}
}

// gates are the disk's part of what a session seals.
type gates struct {
	xlft.Output
	c *Client
}

func (g gates) Seal(e uint64) error    { return errors.Join(g.Output.Seal(e), g.c.Seal(e)) }
func (g gates) Release(e uint64) error { return errors.Join(g.Output.Release(e), g.c.Release(e)) }

// A disk goes through a session's life: refused where it is not known, copied, written to while checkpoints are taken,
// taken over as it was at a checkpoint, and then the other host's.
func TestSession(t *testing.T) {
	a, b := newPlace(t, 'a'), newPlace(t, 'b')
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// The network from A to B, which can be cut for good.
	var mu sync.Mutex
	var conns []net.Conn
	cut := false
	dial := func(ctx context.Context) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if cut {
			return nil, errors.New("cut")
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			conns = append(conns, c)
		}
		return c, err
	}
	w, n := simxen.NewWorld(1), simxen.NewNet(0)
	hostA, hostB := simxen.NewHost(w, n, "A"), simxen.NewHost(w, n, "B")
	defer hostA.Shutdown()
	defer hostB.Shutdown()
	pa, pb := hostA.Spawn(), hostB.Spawn()
	copies := &Copies{Config: b.conf, Store: b.store}
	r := &xlft.Receiver{
		Software: "test", Restorer: &simxen.Restorer{P: pb}, Arbiter: xlft.None{}, Store: pb.Store(), Log: zap.NewNop(), Disks: copies,
		PeerName: func(net.Conn) string { return "A" }, RetryDelay: time.Second, EpochLimit: 1 << 30,
	}
	ctx, cancel := context.WithCancel(t.Context())
	received := make(chan error, 1)
	go func() { received <- r.Serve(ctx, l) }()
	defer func() { cancel(); <-received }()

	s, stop := a.serve(dial)
	defer func() { stop() }()
	client := NewClient(CommandSocket(a.dir, "web1"), "B", []wire.Disk{{VDev: "xvda", Size: size}})
	for vdev, want := range map[string]string{"xvdb": "[domain.web1.disk.xvdb]", "xvda": ""} {
		err := client.Open(ctx, vdev)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("open %s: %v", vdev, err)
		}
	}
	if err := client.Seal(1); err == nil || !strings.Contains(err.Error(), "not being replicated") {
		t.Errorf("seal without a session: %v", err)
	}
	for d, want := range map[wire.Disk]string{
		{VDev: "xvdz", Size: size}: "[domain.web1.disk.xvdz]", {VDev: "xvda", Size: size + 1}: "has 4194304 bytes, the primary's has 4194305", {VDev: "xvda", Size: size}: "",
	} {
		err := copies.Check("web1", d)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("check %v: %v", d, err)
		}
	}

	domain := hostA.Boot("web1", 8)
	session := &xlft.Session{
		Domain: "web1", Software: "test", Instance: "1", Peer: "B",
		Offer: wire.Offer{UUID: "u", Config: []byte("{}"), MaxMemKiB: 32, Disks: client.order.Disks},
		Settings: xlft.Settings{EpochMax: 20 * time.Millisecond, FailureTimeout: 10 * time.Second, AckTimeout: 10 * time.Second,
			SuspendTimeout: time.Second, RetryDelay: 50 * time.Millisecond, SpoolLimit: 1 << 20},
		Guest: pa.Guest(domain), Output: gates{pa.Output(domain), client}, Disks: client, Arbiter: xlft.None{}, Store: pa.Store(), Dial: dial,
		Log: zap.NewNop(),
	}
	ended := make(chan error, 1)
	go func() { ended <- session.Run(pa.Context()) }()
	await := func(what string, ok func(xlft.Status) bool) {
		t.Helper()
		patience := time.After(20 * time.Second)
		for {
			changed := session.Changed()
			if ok(session.Status()) {
				return
			}
			select {
			case <-changed:
			case <-time.After(10 * time.Millisecond):
			case err := <-ended:
				t.Fatalf("%s: the session ended: %v", what, err)
			case <-patience:
				t.Fatalf("%s: %+v", what, session.Status())
			}
		}
	}
	await("protected", func(st xlft.Status) bool { return st.Protected })
	if st, err := b.store.LoadDisk("web1", "xvda"); err != nil || st == xlft.DiskActive {
		t.Errorf("the copy is %q, %v", st, err)
	}
	if _, err := copies.Open("web1", wire.Disk{VDev: "xvda", Size: size}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the copy, opened a second time: %v", err)
	}
	m := s.open["xvda"].mirror
	if err := m.WriteAt([]byte("written"), 12345, true); err != nil {
		t.Fatal(err)
	}
	want := a.image()
	at := session.Status().Epoch
	await("two more epochs", func(st xlft.Status) bool { return st.Epoch >= at+2 })
	if st, err := b.store.LoadDisk("web1", "xvda"); err != nil || st != xlft.DiskReplica {
		t.Errorf("the copy is %q, %v", st, err)
	}

	// The disk server is told to give the disk away: protection ends, and comes back with the disk.
	if err := client.Detach(ctx, "xvda"); err != nil {
		t.Fatal(err)
	}
	await("unprotected", func(st xlft.Status) bool { return !st.Protected && st.LastError != "" })
	select {
	case <-s.Idle():
	case <-time.After(10 * time.Second):
		t.Error("a server without disks is not idle")
	}
	stop()
	s, stop = a.serve(dial)
	if err := client.Open(ctx, "xvda"); err != nil {
		t.Fatal(err)
	}
	await("protected again", func(st xlft.Status) bool { return st.Protected })
	at = session.Status().Epoch
	await("one more epoch", func(st xlft.Status) bool { return st.Epoch >= at+1 })

	// A copy is nothing to run from; after the takeover it is.
	other, stopOther := b.serve(nil)
	if err := other.Open("xvda"); err == nil || !strings.Contains(err.Error(), "does not run from it") {
		t.Errorf("the backup's server opens the copy: %v", err)
	}
	mu.Lock()
	cut = true
	for _, c := range conns {
		c.Close()
	}
	mu.Unlock()
	defer func() { pa.Terminate(); <-ended }()
	patience := time.After(20 * time.Second)
	for hostB.Domain("web1") == nil {
		select {
		case <-patience:
			t.Fatalf("no takeover: %+v", r.Standbys())
		case <-time.After(10 * time.Millisecond):
		}
	}
	if !bytes.Equal(b.image(), want) {
		t.Error("the backup's disk is not the primary's")
	}
	if err := other.Open("xvda"); err != nil {
		t.Errorf("after the takeover: %v", err)
	}
	stopOther()
}

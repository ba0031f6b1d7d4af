package diskrepl_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"xlft/diskrepl"
	"xlft/diskrepl/blockfile"
	"xlft/diskrepl/nbd"
)

func disk(t testing.TB, name string, n int64) *blockfile.File {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, n); err != nil {
		t.Fatal(err)
	}
	f, err := blockfile.Open(name, false)
	if errors.Is(err, blockfile.ErrNeedsLinux) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func contents(t testing.TB, d diskrepl.Device) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// fio writes to a mirrored disk and verifies it, while epochs are sealed and
// committed every 20 ms; in the end both disks are the same, to the byte.
func TestFioMirrored(t *testing.T) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		if os.Getenv("XLFT_PEERS_REQUIRED") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	const size = 32 << 20
	here, there := disk(t, "here", size), disk(t, "there", size)
	m := diskrepl.NewMirror(here)
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var s nbd.Server
	if err := s.Add(&nbd.Export{Name: "disk", Device: m}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()

	link, r := join(t, m, there, 8<<20)
	if err := link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		out, err := exec.CommandContext(ctx, fio, "--name=v", "--ioengine=nbd", "--uri=nbd+unix:///disk?socket="+dir+"/s", "--rw=randrw",
			"--bsrange=512-64k", "--iodepth=32", "--size=32m", "--io_size=64m", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64",
			"--verify_state_save=0", "--fsync=50").CombinedOutput()
		if err != nil {
			t.Errorf("fio: %v\n%s", err, out)
		}
		wrote <- err
	}()
	epoch, finished := uint64(0), false
	for !finished {
		select {
		case <-wrote:
			finished = true
		case <-time.After(20 * time.Millisecond):
		}
		epoch++
		if err := link.Seal(epoch); err != nil {
			t.Fatal(err)
		}
		if err := r.AwaitSealed(ctx, epoch); err != nil {
			t.Fatal(err)
		}
		if err := r.Commit(epoch); err != nil {
			t.Fatal(err)
		}
		link.Release(epoch)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := r.Finish(epoch); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contents(t, here), contents(t, there)) {
		t.Error("the disks differ")
	}
	t.Logf("%d epochs", epoch)
}

// join attaches a replica to a mirror over a TCP connection.
func join(t testing.TB, m *diskrepl.Mirror, there diskrepl.Device, limit int64) (*diskrepl.Link, *diskrepl.Replica) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	r := diskrepl.NewReplica(there, theirs)
	go r.Run()
	link, err := m.Attach(ours, diskrepl.Options{Limit: limit, Lost: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(link.Detach)
	return link, r
}

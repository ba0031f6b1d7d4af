package diskserver

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"xlft/diskrepl"
	"xlft/diskrepl/nbd"
	"xlft/xlft"
	"xlft/xlft/wire"
)

// A copy is made the domain's disk if it is of a moment, and brought to the newest one that its journal has.
func TestPromote(t *testing.T) {
	p, primary := newPlace(t, 'b'), newPlace(t, 'a')
	p.conf.DurableAck = true
	c := &Copies{Config: p.conf, Store: p.store}
	refusedWith := func(st xlft.DiskState, words string) {
		t.Helper()
		if err := p.store.SaveDisk("web1", "xvda", xlft.DiskRecord{State: st}); err != nil {
			t.Fatal(err)
		}
		_, err := c.Promote("web1", "xvda")
		refused(t, string(st), err, words)
	}
	refusedWith(xlft.DiskCopying, "never completed")
	refusedWith(xlft.DiskActive, "already")
	_, err := c.Promote("web1", "xvdz")
	refused(t, "unknown", err, "[domain.web1.disk.xvdz]")
	refusedWith(xlft.DiskOutdated, "")

	// A session, whose host dies with an epoch acked and not taken in.
	there, err := c.Open("web1", wire.Disk{VDev: "xvda", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	here, err := nbd.OpenFile(filepath.Join(primary.dir, "xvda"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	a, b := net.Pipe()
	m, r := diskrepl.NewMirror(here), diskrepl.NewReplica(there, b)
	if err := errors.Join(there.Begin(), r.Durable(there.Durable())); err != nil {
		t.Fatal(err)
	}
	go r.Run()
	l, err := m.Attach(a, diskrepl.Options{Limit: 1 << 20, Lost: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	seal := func(epoch uint64) {
		t.Helper()
		if err := l.Seal(epoch); err != nil {
			t.Fatal(err)
		}
		if err := r.AwaitSealed(context.Background(), epoch); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	seal(1)
	if err := r.Commit(1); err != nil {
		t.Fatal(err)
	}
	if err := there.Record(xlft.DiskRecord{State: xlft.DiskReplica}); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteAt([]byte("acked"), 4711, true); err != nil {
		t.Fatal(err)
	}
	want := primary.image()
	seal(2)
	if err := m.WriteAt([]byte("never sealed"), 8000, true); err != nil {
		t.Fatal(err)
	}
	journal := c.durable("web1", "xvda")
	saved := t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(string(journal))); err != nil {
		t.Fatal(err)
	}
	a.Close()
	r.Close()
	there.Close()
	if err := os.CopyFS(string(journal), os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}

	// Nothing comes over the next session's connection.
	again, err := c.Open("web1", wire.Disk{VDev: "xvda", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()

	epoch, err := c.Promote("web1", "xvda")
	if err != nil || epoch != 2 {
		t.Errorf("brought to epoch %d, %v", epoch, err)
	}
	if !bytes.Equal(p.image(), want) {
		t.Error("the disk is not that of the epoch that was acked")
	}
	if rec, err := p.store.LoadDisk("web1", "xvda"); err != nil || rec.State != xlft.DiskActive {
		t.Errorf("%+v, %v", rec, err)
	}
	if left, err := journal.Any(); left || err != nil {
		t.Errorf("a journal is left: %v, %v", left, err)
	}
}

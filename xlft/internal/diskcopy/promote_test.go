package diskcopy

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"xlft/diskrepl"
	"xlft/diskrepl/blockfile"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A dying session has a copy with a journal on stable storage, and ends with
// the host's power.
type dying struct {
	t       *testing.T
	p       *place
	vdev    string
	copies  *Copies
	copy    backup.DiskCopy
	m       *diskrepl.Mirror
	link    *diskrepl.Link
	replica *diskrepl.Replica
	conn    net.Conn
}

// protect makes a first copy of primary's disk.
func (p *place) protect(primary *place, vdev string) *dying {
	t := p.t
	t.Helper()
	d := &dying{t: t, p: p, vdev: vdev, copies: &Copies{Config: p.conf, Store: p.store}}
	offer := wire.Disk{VDev: vdev, Size: size, Shared: p.conf.For("web1").Disks[vdev].Shared}
	var err error
	if d.copy, err = d.copies.Open("web1", offer); err != nil {
		t.Fatal(err)
	}
	here, err := blockfile.Open(filepath.Join(primary.dir, vdev), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	a, b := net.Pipe()
	d.conn, d.m, d.replica = a, diskrepl.NewMirror(here), diskrepl.NewReplica(d.copy, b)
	if offer.Shared { // of what the primary sends only this matters here
		d.replica = diskrepl.NewReplica(unwritten{d.copy}, b)
	}
	if err := d.copy.Begin(xlft.Inconsistent); err != nil {
		t.Fatal(err)
	}
	d.replica.Durable(d.copy.Durable())
	go d.replica.Run()
	if d.link, err = d.m.Attach(a, diskrepl.Options{Limit: 1 << 20, Lost: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	if err := d.link.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	d.seal(1)
	d.commit(1)
	if err := d.copy.Record(xlft.DiskRecord{State: xlft.Consistent}); err != nil {
		t.Fatal(err)
	}
	return d
}

// unwritten storage gets nothing before it is promoted.
type unwritten struct{ backup.DiskCopy }

func (unwritten) WriteAt([]byte, int64, bool) error { return nil }

func (d *dying) write(what string, off int64) {
	d.t.Helper()
	if err := d.m.WriteAt([]byte(what), off, true); err != nil {
		d.t.Fatal(err)
	}
}

func (d *dying) seal(epoch uint64) {
	d.t.Helper()
	if err := d.link.Seal(epoch); err != nil {
		d.t.Fatal(err)
	}
	if err := d.replica.AwaitSealed(context.Background(), epoch); err != nil {
		d.t.Fatal(err)
	}
}

func (d *dying) commit(epoch uint64) {
	d.t.Helper()
	d.link.Release(epoch)
	if err := d.replica.Commit(epoch); err != nil {
		d.t.Fatal(err)
	}
}

// die leaves what is on stable storage.
func (d *dying) die() {
	d.conn.Close()
	d.replica.Close()
	d.copy.Close()
}

// more gives a place another disk.
func (p *place) more(vdev string, fill byte, shared bool) {
	p.t.Helper()
	path := filepath.Join(p.dir, vdev)
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, size), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.conf.Domains["web1"].Disks[vdev] = config.Disk{VDev: vdev, Path: path, Shared: shared}
}

func (p *place) at(vdev string, off int64, n int) string {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, vdev))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b[off : off+int64(n)])
}

func (p *place) states(vdevs ...string) (states []xlft.DiskState) {
	for _, v := range vdevs {
		r, err := p.store.LoadDisk("web1", v)
		if err != nil {
			p.t.Fatal(err)
		}
		states = append(states, r.State)
	}
	return states
}

// A copy is made the domain's disk if it is consistent, and brought to the
// newest one that its journal has.
func TestPromote(t *testing.T) {
	p, primary := newPlace(t, 'b'), newPlace(t, 'a')
	p.conf.DurableAck = true
	c := &Copies{Config: p.conf, Store: p.store}
	refusedWith := func(st xlft.DiskState, words string) {
		t.Helper()
		if err := p.store.SaveDisk("web1", "xvda", xlft.DiskRecord{State: st}); err != nil {
			t.Fatal(err)
		}
		for _, vdev := range []string{"", "xvda"} {
			_, err := c.Promote("web1", vdev, AskShared)
			refused(t, string(st), err, words)
			if st == xlft.Outdated {
				break // is promoted the first time
			}
		}
	}
	refusedWith(xlft.Inconsistent, "never completed")
	refusedWith(xlft.UpToDate, "already")
	_, err := c.Promote("web1", "xvdz", AskShared)
	refused(t, "unknown", err, "[domain.web1.disk.xvdz]")
	_, err = c.Promote("web2", "", AskShared)
	refused(t, "unknown domain", err, "[domain.web2.disk.")
	refusedWith(xlft.Outdated, "")

	// A session, whose host dies with an epoch acked and not taken in.
	d := p.protect(primary, "xvda")
	d.write("acked", 4711)
	want := primary.image()
	d.seal(2)
	d.write("never sealed", 8000)
	_, err = c.Promote("web1", "", AskShared)
	refused(t, "in a session", err, "in use")
	d.die()

	// Nothing comes over the next session's connection.
	again, err := c.Open("web1", wire.Disk{VDev: "xvda", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()

	done, err := c.Promote("web1", "", AskShared)
	if err != nil || fmt.Sprint(done) != "[{xvda 2}]" {
		t.Errorf("%v, %v", done, err)
	}
	if !bytes.Equal(p.image(), want) {
		t.Error("the disk is not that of the epoch that was acked")
	}
	if st := p.states("xvda"); st[0] != xlft.UpToDate {
		t.Errorf("%v", st)
	}
	if left, err := c.durable("web1", "xvda").Any(); left || err != nil {
		t.Errorf("a journal is left: %v, %v", left, err)
	}
}

// Disks of one domain are brought to one epoch, though the host died when one
// of them had a newer one that was never acked, and the other had not taken in
// all that was.
func TestPromoteTogether(t *testing.T) {
	p, primary := newPlace(t, 'b'), newPlace(t, 'a')
	p.conf.DurableAck = true
	p.more("xvdb", 'b', false)
	primary.more("xvdb", 'a', false)
	a, b := p.protect(primary, "xvda"), p.protect(primary, "xvdb")
	for e := uint64(2); e <= 3; e++ {
		for _, d := range []*dying{a, b} {
			d.write(fmt.Sprint("epoch ", e), 100)
			d.seal(e)
		}
		a.commit(e)
		if e == 2 {
			b.commit(e)
		}
	}
	a.write("epoch 4", 100)
	a.seal(4)
	b.write("epoch 4", 100)
	a.die()
	b.die()
	c := a.copies
	done, err := c.Promote("web1", "", AskShared)
	if err != nil || fmt.Sprint(done) != "[{xvda 0} {xvdb 3}]" {
		t.Errorf("%v, %v", done, err)
	}
	for _, vdev := range []string{"xvda", "xvdb"} {
		if got := p.at(vdev, 100, 7); got != "epoch 3" {
			t.Errorf("%s has %q", vdev, got)
		}
	}
	if st := fmt.Sprint(p.states("xvda", "xvdb")); st != "[up-to-date up-to-date]" {
		t.Error(st)
	}

	// Two that can't be brought together stay as they are, unless each is asked
	// for alone.
	for v, e := range map[string]uint64{"xvda": 7, "xvdb": 9} {
		if err := p.store.SaveDisk("web1", v, xlft.DiskRecord{State: xlft.Consistent, Mark: diskrepl.SyncPoint{Session: "s", Epoch: e}}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Promote("web1", "", AskShared)
	refused(t, "two checkpoints", err, "one by one")
	if st := fmt.Sprint(p.states("xvda", "xvdb")); st != "[consistent consistent]" {
		t.Error(st)
	}
	for _, v := range []string{"xvda", "xvdb"} {
		if _, err := c.Promote("web1", v, AskShared); err != nil {
			t.Error(err)
		}
	}
}

// A journal of storage that another host wrote to as well is written to it only
// if somebody says so.
func TestPromoteShared(t *testing.T) {
	for how, want := range map[SharedJournal]string{ReplayShared: "acked", DiscardShared: "bbbbb"} {
		p, primary := newPlace(t, 'b'), newPlace(t, 'a')
		p.conf.DurableAck = true
		p.more("xvdb", 'b', true)
		primary.more("xvdb", 'a', true)
		mirrored, d := p.protect(primary, "xvda"), p.protect(primary, "xvdb")
		for _, d := range []*dying{mirrored, d} {
			d.write("acked", 4711)
			d.seal(2)
			d.die()
		}
		_, err := d.copies.Promote("web1", "", AskShared)
		refused(t, "a journal of shared storage", err, "--replay")
		if got := p.at("xvdb", 4711, 5); got != "bbbbb" || p.states("xvdb")[0] != xlft.Consistent {
			t.Errorf("refused, and the disk has %q, %v", got, p.states("xvdb"))
		}
		if _, err := d.copies.Promote("web1", "", how); err != nil {
			t.Error(err)
		}
		if got := p.at("xvdb", 4711, 5); got != want {
			t.Errorf("the disk has %q, want %q", got, want)
		}
		if got := p.at("xvda", 4711, 5); got != "acked" {
			t.Errorf("the mirrored disk has %q", got)
		}
	}
}

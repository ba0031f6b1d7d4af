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
	"xlft/xlft/internal/disktest"
	"xlft/xlft/wire"
)

// A hostDir is a host's directory, with what a test of promotion does to it.
type hostDir struct{ *disktest.HostDir }

func newHostDir(t *testing.T, fill byte) hostDir {
	t.Helper()
	return hostDir{disktest.New(t, fill)}
}

// A dying session has a copy with a journal on stable storage, and ends with a
// power cut.
type dying struct {
	t       *testing.T
	copies  *Copies
	copy    backup.DiskCopy
	m       *diskrepl.Mirror
	link    *diskrepl.Link
	replica *diskrepl.Replica
	conn    net.Conn
}

// protect makes the first copy of primary's disk.
func (h hostDir) protect(primary hostDir, vdev string) *dying {
	t := h.T
	t.Helper()
	d := &dying{t: t, copies: &Copies{Config: func() *config.Config { return h.Conf }, Store: h.Store}}
	offer := wire.Disk{VDev: vdev, Size: disktest.Size, Shared: h.Conf.For("web1").Disks[vdev].Shared}
	var err error
	if d.copy, err = d.copies.Open("web1", offer); err != nil {
		t.Fatal(err)
	}
	here, err := blockfile.Open(filepath.Join(primary.Dir, vdev), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	a, b := net.Pipe()
	d.conn, d.m, d.replica = a, diskrepl.NewMirror(here), diskrepl.NewReplica(d.copy, b)
	if offer.Shared { // only the journal matters here
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

// unwritten storage takes no writes before it is promoted.
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

// die ends the session, and leaves what is on stable storage.
func (d *dying) die() {
	d.conn.Close()
	d.replica.Close()
	d.copy.Close()
}

func (h hostDir) at(vdev string, off int64, n int) string {
	h.T.Helper()
	return string(h.Image(vdev)[off : off+int64(n)])
}

func (h hostDir) states(vdevs ...string) (states []xlft.DiskState) {
	for _, v := range vdevs {
		r, err := h.Store.LoadDisk("web1", v)
		if err != nil {
			h.T.Fatal(err)
		}
		states = append(states, r.State)
	}
	return states
}

// A consistent copy is brought to the newest epoch in its journal and becomes
// the domain's disk.
func TestPromote(t *testing.T) {
	h, primary := newHostDir(t, 'b'), newHostDir(t, 'a')
	h.Conf.DurableAck = true
	c := &Copies{Config: func() *config.Config { return h.Conf }, Store: h.Store}
	refusedWith := func(st xlft.DiskState, words string) {
		t.Helper()
		if err := h.Store.SaveDisk("web1", "xvda", xlft.DiskRecord{State: st}); err != nil {
			t.Fatal(err)
		}
		for _, vdev := range []string{"", "xvda"} {
			_, err := c.Promote("web1", vdev, AskShared)
			disktest.Refused(t, string(st), err, words)
			if st == xlft.Outdated {
				break // Promote succeeds the first time
			}
		}
	}
	refusedWith(xlft.Inconsistent, "never completed")
	refusedWith(xlft.UpToDate, "already")
	_, err := c.Promote("web1", "xvdz", AskShared)
	disktest.Refused(t, "unknown", err, "[domain.web1.disk.xvdz]")
	_, err = c.Promote("web2", "", AskShared)
	disktest.Refused(t, "unknown domain", err, "[domain.web2.disk.")
	refusedWith(xlft.Outdated, "")

	// A session whose host dies with an epoch acked and not yet applied.
	d := h.protect(primary, "xvda")
	d.write("acked", 4711)
	want := primary.Image("xvda")
	d.seal(2)
	d.write("never sealed", 8000)
	_, err = c.Promote("web1", "", AskShared)
	disktest.Refused(t, "in a session", err, "in use")
	d.die()

	// Nothing comes over the next session's connection.
	again, err := c.Open("web1", wire.Disk{VDev: "xvda", Size: disktest.Size})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()

	done, err := c.Promote("web1", "", AskShared)
	if err != nil || fmt.Sprint(done) != "[{xvda 2}]" {
		t.Errorf("%v, %v", done, err)
	}
	if !bytes.Equal(h.Image("xvda"), want) {
		t.Error("the disk is not that of the epoch that was acked")
	}
	if st := h.states("xvda"); st[0] != xlft.UpToDate {
		t.Errorf("%v", st)
	}
	if left, err := c.journal("web1", "xvda").Any(); left || err != nil {
		t.Errorf("a journal is left: %v, %v", left, err)
	}
}

// The disks of a domain are brought to one epoch, though the host died when one
// disk had a newer epoch that was never acked, and the other had not yet
// applied all acked epochs.
func TestPromoteTogether(t *testing.T) {
	h, primary := newHostDir(t, 'b'), newHostDir(t, 'a')
	h.Conf.DurableAck = true
	h.AddDisk("xvdb", 'b', false)
	primary.AddDisk("xvdb", 'a', false)
	a, b := h.protect(primary, "xvda"), h.protect(primary, "xvdb")
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
		if got := h.at(vdev, 100, 7); got != "epoch 3" {
			t.Errorf("%s has %q", vdev, got)
		}
	}
	if st := fmt.Sprint(h.states("xvda", "xvdb")); st != "[up-to-date up-to-date]" {
		t.Error(st)
	}

	// Disks that can't be brought to one epoch stay as they are, unless each is
	// promoted alone.
	for v, e := range map[string]uint64{"xvda": 7, "xvdb": 9} {
		r := xlft.DiskRecord{State: xlft.Consistent, SyncPoint: diskrepl.SyncPoint{Session: "s", Epoch: e}}
		if err := h.Store.SaveDisk("web1", v, r); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Promote("web1", "", AskShared)
	disktest.Refused(t, "two checkpoints", err, "one by one")
	if st := fmt.Sprint(h.states("xvda", "xvdb")); st != "[consistent consistent]" {
		t.Error(st)
	}
	for _, v := range []string{"xvda", "xvdb"} {
		if _, err := c.Promote("web1", v, AskShared); err != nil {
			t.Error(err)
		}
	}
}

// A copy whose storage failed is promoted only if a journal repairs it.
func TestPromoteFailed(t *testing.T) {
	for _, st := range []xlft.DiskState{xlft.Inconsistent, xlft.Consistent} {
		h, primary := newHostDir(t, 'b'), newHostDir(t, 'a')
		h.Conf.DurableAck = true
		failed := xlft.DiskRecord{State: st, Failed: "medium error"}
		c := &Copies{Config: func() *config.Config { return h.Conf }, Store: h.Store}
		if err := h.Store.SaveDisk("web1", "xvda", failed); err != nil {
			t.Fatal(err)
		}
		_, err := c.Promote("web1", "", AskShared)
		disktest.Refused(t, string(st), err, "medium error")
		if st == xlft.Inconsistent {
			continue
		}
		d := h.protect(primary, "xvda")
		d.write("acked", 4711)
		d.seal(2)
		d.die()
		if err := h.Store.SaveDisk("web1", "xvda", failed); err != nil {
			t.Fatal(err)
		}
		if done, err := c.Promote("web1", "", AskShared); err != nil || fmt.Sprint(done) != "[{xvda 2}]" {
			t.Errorf("with a journal: %v, %v", done, err)
		}
		if got := h.at("xvda", 4711, 5); got != "acked" {
			t.Errorf("the disk has %q", got)
		}
		if r, err := h.Store.LoadDisk("web1", "xvda"); err != nil || r.State != xlft.UpToDate || r.Failed == "" {
			t.Errorf("promoted, the record is %+v, %v: the next copy to this storage would be compared", r, err)
		}
	}
}

// A copy on storage that failed stays one when it is given up.
func TestInvalidateKeepsFailure(t *testing.T) {
	h := newHostDir(t, 'b')
	if err := h.Store.SaveDisk("web1", "xvda", xlft.DiskRecord{State: xlft.UpToDate, Failed: "medium error", Data: xlft.DataGen{ID: "1"}}); err != nil {
		t.Fatal(err)
	}
	c := &Copies{Config: func() *config.Config { return h.Conf }, Store: h.Store}
	if err := c.Invalidate("web1", "xvda"); err != nil {
		t.Fatal(err)
	}
	if r, err := h.Store.LoadDisk("web1", "xvda"); err != nil || r.State != xlft.Inconsistent || r.Failed != "medium error" || r.Data.ID != "" {
		t.Errorf("the record is %+v, %v", r, err)
	}
}

// A journal whose newest epoch is damaged is refused, because the disk may have a
// part of it: only an operator's word takes the copy as it is.
func TestPromoteDamagedJournal(t *testing.T) {
	h, primary := newHostDir(t, 'b'), newHostDir(t, 'a')
	h.Conf.DurableAck = true
	d := h.protect(primary, "xvda")
	d.write("acked", 4711)
	d.seal(2)
	d.commit(2)
	d.die()
	name := filepath.Join(string(d.copies.journal("web1", "xvda")), "whole-2")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = d.copies.Promote("web1", "", AskShared)
	disktest.Refused(t, "a damaged journal", err, "--discard")
	if st := h.states("xvda"); st[0] != xlft.Consistent {
		t.Errorf("refused, and recorded as %v", st)
	}
	if _, err := d.copies.Promote("web1", "", DiscardShared); err != nil {
		t.Error(err)
	}
	if st := h.states("xvda"); st[0] != xlft.UpToDate {
		t.Errorf("%v", st)
	}
}

// The journal of shared storage, to which another host wrote too, is replayed
// only if the operator asks for it.
func TestPromoteShared(t *testing.T) {
	for how, want := range map[SharedJournal]string{ReplayShared: "acked", DiscardShared: "bbbbb"} {
		h, primary := newHostDir(t, 'b'), newHostDir(t, 'a')
		h.Conf.DurableAck = true
		h.AddDisk("xvdb", 'b', true)
		primary.AddDisk("xvdb", 'a', true)
		mirrored, d := h.protect(primary, "xvda"), h.protect(primary, "xvdb")
		for _, d := range []*dying{mirrored, d} {
			d.write("acked", 4711)
			d.seal(2)
			d.die()
		}
		_, err := d.copies.Promote("web1", "", AskShared)
		disktest.Refused(t, "a journal of shared storage", err, "--replay")
		if got := h.at("xvdb", 4711, 5); got != "bbbbb" || h.states("xvdb")[0] != xlft.Consistent {
			t.Errorf("refused, and the disk has %q, %v", got, h.states("xvdb"))
		}
		if _, err := d.copies.Promote("web1", "", how); err != nil {
			t.Error(err)
		}
		if got := h.at("xvdb", 4711, 5); got != want {
			t.Errorf("the disk has %q, want %q", got, want)
		}
		if got := h.at("xvda", 4711, 5); got != "acked" {
			t.Errorf("the mirrored disk has %q", got)
		}
	}
}

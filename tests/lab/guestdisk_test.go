//go:build lab

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/probe"
)

const dataImage = "/root/data.img"

// A diskTest is a guest on host A that has a disk and the programs to work on it.
type diskTest struct {
	*testing.T
	l *lab.Lab
	c *probe.Client
}

func bootWithDisk(t *testing.T) diskTest {
	l := lab.Start(t)
	l.A.Must(t, "truncate", "-s", "128M", dataImage)
	g := lab.NewGuest("web1", 10)
	g.Disks = []string{"format=raw,vdev=xvda,access=rw,target=" + dataImage}
	g.Tools = true
	c := bootGuest(t, l, l.A, g)
	check(t, c.SetDeadline(time.Now().Add(4*time.Minute)))
	return diskTest{t, l, c}
}

// step runs a step that must not fail, and logs how long it took.
func (d diskTest) step(what string, f func() error) {
	d.Helper()
	begin := time.Now()
	if err := f(); err != nil {
		d.Fatalf("%s: %v", what, err)
	}
	d.Logf("%s took %v", what, time.Since(begin).Round(time.Millisecond))
}

// finds checks that an error is of the kind want.
func (d diskTest) finds(what string, err, want error) {
	d.Helper()
	if !errors.Is(err, want) {
		d.Errorf("%s: got %v, want that %v", what, err, want)
		return
	}
	d.Logf("%s: %v", what, err)
}

func (d diskTest) commits(ledger *probe.Ledger, n int) func() error {
	return func() error {
		for range n {
			if err := ledger.Commit(d.c); err != nil {
				return err
			}
		}
		return nil
	}
}

func (d diskTest) judge(ledger *probe.Ledger) error {
	d.Helper()
	rows, err := d.c.Rows()
	check(d.T, err)
	return ledger.Judge(rows)
}

func (d diskTest) fio(args ...string) probe.FioResult {
	d.Helper()
	begin := time.Now()
	check(d.T, d.c.FioStart(args...))
	r, err := d.c.FioWait()
	check(d.T, err)
	d.Logf("fio %s took %v: %+v", strings.Join(args, " "), time.Since(begin).Round(time.Millisecond), r)
	return r
}

func (d diskTest) fsck() probe.Fsck {
	d.Helper()
	begin := time.Now()
	f, err := d.c.Fsck()
	check(d.T, err)
	d.Logf("fsck took %v: %+v", time.Since(begin).Round(time.Millisecond), f)
	return f
}

func TestLabGuestPrograms(t *testing.T) {
	lab.Long(t)
	d := bootWithDisk(t)
	c := d.c
	d.step("mkfs", c.Mkfs)

	var ledger probe.Ledger
	d.step("the first commit", d.commits(&ledger, 1))
	d.step("50 commits", d.commits(&ledger, 50))
	d.step("rows", func() error { return d.judge(&ledger) })
	check(t, c.Journal("wal"))
	d.step("50 commits with a log", d.commits(&ledger, 50))
	d.step("rows", func() error { return d.judge(&ledger) })
	d.step("integrity", c.Integrity)

	// Both continue when the guest moves to another domain, as at a takeover.
	check(t, c.FioStart(probe.FioVerify("fio", 8, 2)...))
	d.finds("two fios", c.FioStart("--version"), probe.ErrRefused)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- ledger.Run(ctx, c) }()
	d.step("save and restore", func() error {
		d.l.A.Must(t, "xl", "save", "web1", "/root/web1")
		_, err := d.l.A.Run(within(t, time.Minute), "xl", "restore", "/root/web1")
		return err
	})
	before := ledger.Held()
	d.step("20 more commits", func() error {
		return lab.Await(within(t, time.Minute), func() error {
			if now := ledger.Held(); now < before+20 {
				return fmt.Errorf("%d commits, %d before", now, before)
			}
			return nil
		})
	})
	stop()
	check(t, <-ended)
	progress, err := c.FioStatus()
	check(t, err)
	t.Logf("%d commits in all; fio has come to %+v", ledger.Held(), progress)
	begin := time.Now()
	r, err := c.FioWait()
	check(t, err)
	t.Logf("fio took %v more: %+v", time.Since(begin).Round(time.Millisecond), r)
	check(t, r.Err())
	const all = 2 * 8 << 20
	if r.Read != all || r.Written != all {
		t.Errorf("fio wrote %d bytes and verified %d, want %d", r.Written, r.Read, all)
	}

	d.finds("fsck of a mounted disk", func() error { _, err := c.Fsck(); return err }(), probe.ErrRefused)
	d.step("unmount", c.Unmount)
	check(t, d.fsck().Err())
	d.step("mount", c.Mount)
	check(t, d.judge(&ledger))
	check(t, c.Integrity())
}

func TestLabGuestRowsDamaged(t *testing.T) {
	lab.Long(t)
	d := bootWithDisk(t)
	c := d.c
	check(t, c.Mkfs())
	var ledger probe.Ledger
	check(t, d.commits(&ledger, 40)())
	check(t, d.judge(&ledger))
	for _, s := range []struct{ what, damage, repair string }{
		{"half a transaction", "UPDATE total SET rows = rows - 1", "UPDATE total SET rows = rows + 1"},
		{"half a row", "UPDATE rows SET body = substr(body, 1, 128) WHERE n = 5",
			"UPDATE rows SET body = '" + probe.RowBody(5) + "' WHERE n = 5"},
		{"a row lost", "CREATE TABLE lost AS SELECT * FROM rows WHERE n = 7; DELETE FROM rows WHERE n = 7",
			"UPDATE total SET rows = rows - 1; INSERT INTO rows SELECT * FROM lost; DROP TABLE lost"},
		{"the last row lost", "DELETE FROM rows WHERE n = 40", "UPDATE total SET rows = rows - 1; INSERT INTO rows VALUES (40, '" + probe.RowBody(40) + "')"},
		{"a row too many", "INSERT INTO rows VALUES (41, 'x')", "DELETE FROM rows WHERE n = 41; UPDATE total SET rows = rows - 1"},
	} {
		_, err := c.SQL(s.damage)
		check(t, err)
		d.finds(s.what, d.judge(&ledger), probe.ErrLedger)
		_, err = c.SQL(s.repair)
		check(t, err)
		check(t, d.judge(&ledger))
	}
	d.finds("a commit made twice", c.Commit(40), probe.ErrRefused)
	check(t, d.judge(&ledger))

	// The guest reads its rows from the disk, also while it has them in memory. The host finds the file's blocks there
	// once they have been written back.
	check(t, c.Unmount())
	check(t, c.Mount())
	check(t, d.judge(&ledger))
	check(t, c.Integrity())
	d.l.A.Must(t, "sh", "-ec", fmt.Sprintf(`
		size=$(dumpe2fs -h %[1]s 2>&1 | sed -n 's/^Block size: *//p')
		blocks=$(debugfs -R 'blocks /rows.db' %[1]s | tr ' ' '\n' | grep . | tail -n +9)
		test -n "$blocks"
		for block in $blocks; do dd if=/dev/urandom of=%[1]s bs=$size seek=$block count=1 conv=notrunc; done`, dataImage))
	d.finds("rows.db overwritten", c.Integrity(), probe.ErrUnsound)
	check(t, c.Unmount())
	check(t, d.fsck().Err()) // fsck does not check file contents
	d.l.A.Must(t, "sh", "-ec", fmt.Sprintf(`
		size=$(dumpe2fs -h %[1]s 2>&1 | sed -n 's/^Block size: *//p')
		inodes=$(dumpe2fs -g %[1]s 2>&1 | grep '^0:' | cut -d: -f7)
		dd if=/dev/urandom of=%[1]s bs=$size seek=$inodes count=4 conv=notrunc`, dataImage))
	d.finds("inodes overwritten", d.fsck().Err(), probe.ErrUnsound)
}

func TestLabGuestFioDamaged(t *testing.T) {
	lab.Long(t)
	d := bootWithDisk(t)
	const disk = "/dev/xvda"
	check(t, d.fio(probe.FioVerify(disk, 4, 1, "--do_verify=0")...).Err())
	check(t, d.fio(probe.FioVerify(disk, 4, 1, "--verify_only")...).Err())
	d.l.A.Must(t, "dd", "if=/dev/urandom", "of="+dataImage, "bs=4k", "seek=256", "count=1", "conv=notrunc")
	r := d.fio(probe.FioVerify(disk, 4, 1, "--verify_only")...)
	d.finds("a block overwritten", r.Err(), probe.ErrUnsound)
	if r.Errors != 1 {
		t.Errorf("fio counts %d errors, want 1", r.Errors)
	}
	d.finds("no arguments", d.fio().Err(), probe.ErrUnsound)

	// A disk that loses acknowledged writes goes back to the pass before.
	check(t, d.c.FioStart(probe.FioVerify(disk, 1, 2, "--rate_iops=,40")...))
	written := func(n uint64) {
		t.Helper()
		check(t, lab.Await(within(t, time.Minute), func() error {
			p, err := d.c.FioStatus()
			if err == nil && p.Running && p.Written < n {
				err = fmt.Errorf("fio has written %d bytes, want %d", p.Written, n)
			}
			return err
		}))
	}
	written(1 << 20)
	d.l.A.Must(t, "dd", "if="+dataImage, "of=/root/old", "bs=1M", "count=1")
	written(3 << 19)
	d.l.A.Must(t, "dd", "if=/root/old", "of="+dataImage, "bs=1M", "count=1", "conv=notrunc")
	r, err := d.c.FioWait()
	check(t, err)
	d.finds("writes taken back", r.Err(), probe.ErrUnsound)
}

func TestLabGuestWithoutTools(t *testing.T) {
	lab.Long(t)
	l := lab.Start(t)
	d := diskTest{t, l, bootGuest(t, l, l.A, lab.NewGuest("web1", 10))}
	for what, f := range map[string]func() error{
		"mkfs":       d.c.Mkfs,
		"commit":     func() error { return d.c.Commit(1) },
		"fio":        func() error { return d.c.FioStart("--version") },
		"fio status": func() error { _, err := d.c.FioStatus(); return err },
		"fio wait":   func() error { _, err := d.c.FioWait(); return err },
	} {
		d.finds(what, f(), probe.ErrRefused)
	}
	_, err := d.c.Get()
	check(t, err)
}

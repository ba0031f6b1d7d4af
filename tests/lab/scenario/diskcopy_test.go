//go:build lab

package scenario

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"xlft/diskrepl"
	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

// After an interruption that both hosts survived nothing is compared: only the writes since then are sent. The copy of
// a backup that lost its power is compared. If the primary's host then dies, the backup's disk is the domain's.
func TestDiskResync(t *testing.T) {
	lab.Long(t)
	fx := diskFixture(t)
	fx.boot()
	fx.protect()
	from, to := fx.home, fx.backup()
	r := fx.status(from)
	copied := func(r ft.Row) diskrepl.Progress {
		t.Helper()
		if r.Primary == nil || len(r.Primary.Disks) != 1 {
			t.Fatalf("the status has no disk: %+v", r.Primary)
		}
		return r.Primary.Disks[0].Progress
	}
	if p := copied(r); p.Known || p.Total != diskMiB<<20 {
		t.Errorf("the first copy: %+v", p)
	}
	block := int64(1000)
	for _, broken := range []struct {
		name       string
		begin, end func()
		writes     int64 // writes meanwhile, each to another chunk
		known      int64 // writes that are known, at least; -1: none is known, everything is compared
	}{
		{"receiver stopped", func() {
			to.Must(t, "systemctl", "stop", "xlft-receiver.socket", "xlft-receiver.service")
			fx.awaitUnprotected()
		}, func() {
			to.Must(t, "systemctl", "start", "xlft-receiver.socket", "xlft-receiver.service")
		}, 3, 3},
		{"disk server killed", func() {
			from.Must(t, "systemctl", "kill", "--signal=KILL", "xlft-disk@web1.service")
		}, func() {}, 1, 0}, // the copying may have begun
		{"backup lost its power", func() {
			to.Kill()
			fx.awaitUnprotected()
		}, func() {
			check(t, to.Boot(within(t, 2*patience)))
		}, 3, -1},
	} {
		before := r.Primary.Generation
		broken.begin()
		for range broken.writes {
			check(t, fx.ask().WriteBlock(block, uint64(block)))
			block += 1000
		}
		broken.end()
		r = fx.await(from, "protected again", func(r ft.Row) bool { return r.Protected && r.Primary.Generation > before })
		p := copied(r)
		if broken.known < 0 {
			t.Logf("%s: %d KiB were compared, %d KiB were sent", broken.name, p.Total>>10, p.Sent>>10)
			if p.Known || p.Total != diskMiB<<20 || p.Sent < broken.writes*diskrepl.ChunkSize {
				t.Errorf("%s: %+v", broken.name, p)
			}
			continue
		}
		t.Logf("%s: %d KiB were known to differ, %d KiB were sent", broken.name, p.Total>>10, p.Sent>>10)
		if least, most := broken.known*diskrepl.ChunkSize, broken.writes*diskrepl.ChunkSize; !p.Known || p.Sent != p.Total || p.Total < least || p.Total > most {
			t.Errorf("%s: %+v, want %d to %d bytes", broken.name, p, least, most)
		}
	}
	all := fx.scribes(6, 1)
	all.more(fx, 3)
	from.Kill()
	fx.awaitTakeover(to)
	all.more(fx, 3)
	all.end(fx)
	all.judge(fx)
	for b := int64(1000); b < block; b += 1000 {
		if n, err := fx.ask().ReadBlock(b); err != nil || n != uint64(b) {
			t.Errorf("block %d, written while the backup did not hear of it: %d, %v", b, n, err)
		}
	}
}

// keepsAcked makes backups ack a checkpoint only when its disk writes are on stable storage.
func keepsAcked(s *ft.Settings) { s.More += "[receive]\ndurable_ack = true\n" }

// losePower ends both hosts at once. The backup boots from its own disk, its copy is promoted, and the domain is
// started there.
func (fx *fixture) losePower() {
	fx.t.Helper()
	to := fx.backup()
	var off sync.WaitGroup
	for _, h := range fx.Hosts() {
		off.Go(h.Kill)
	}
	off.Wait()
	begun := time.Now()
	check(fx.t, to.Boot(within(fx.t, 2*patience)))
	fx.t.Logf("%s booted in %v", to.Name(), round(time.Since(begun)))
	fx.home = to
	fx.refused(to, "promote web1", "xlft", "disk", "attach", "web1/xvda")
	promote := []string{"xlft", "disk", "promote", "web1"}
	if !fx.kind.mirrors() {
		fx.refused(to, "say --replay if it did not", promote...)
		promote = append(promote, "--replay")
	}
	fx.t.Log(strings.TrimSpace(to.Must(fx.t, promote...)))
	fx.boot()
}

// Both hosts lose their power at once, and one never comes back: every acknowledged write is on the backup's disk.
func TestDiskPromote(t *testing.T) {
	lab.Long(t)
	eachStorage(t, mirror, []storage{mirror, mixed}, testDiskPromote, keepsAcked)
}

func testDiskPromote(t *testing.T, fx *fixture) {
	fx.chooseSeed()
	random := rand.New(rand.NewPCG(*seed, 3))
	fx.boot()
	fx.protect()
	fx.backup().Must(t, "sync") // what was installed
	all := fx.scribes(6, *seed)
	all.await(fx, 3)
	<-time.After(time.Duration(random.Int64N(int64(3 * time.Second))))
	r := fx.status(fx.home)
	if !r.Protected {
		t.Fatalf("not protected any more: %s", r.State)
	}
	fx.losePower()
	t.Logf("both hosts died after checkpoint %d and %d durable writes; ack after %v", r.Epoch, all.written(), round2(r.Primary.AckMedian))
	for _, s := range all {
		s.c.Close()
		if <-s.done == nil {
			t.Error("a scribe ended without an error")
		}
	}
	all.judge(fx)
}

// The same with a file system and a database on it.
func TestDiskPromotePrograms(t *testing.T) {
	lab.Long(t)
	fx := diskFixtureOn(t, mirror, keepsAcked)
	fx.guest.Tools = true
	fx.boot()
	check(t, fx.ask().Mkfs())
	// SQLite deletes its journal and does not sync the directory: a commit survives a power cut only once the next commit
	// is made.
	check(t, fx.ask().Journal("wal"))
	fx.protect()
	fx.backup().Must(t, "sync")
	var ledger probe.Ledger
	db := fx.dial()
	check(t, db.SetDeadline(time.Now().Add(2*patience)))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- ledger.Run(ctx, db) }()
	fx.until(patience, func() error {
		if n := ledger.Held(); n < 10 {
			return fmt.Errorf("%d commits, of 10", n)
		}
		return nil
	})
	fx.losePower()
	db.Close()
	t.Logf("both hosts died after %d commits: %v", ledger.Held(), <-ended)
	check(t, fx.ask().Mount())
	rows, err := fx.ask().Rows()
	check(t, err)
	check(t, ledger.Judge(rows))
	check(t, fx.ask().Integrity())
	check(t, fx.ask().Unmount())
	fsck, err := fx.ask().Fsck()
	check(t, err)
	check(t, fsck.Err())
	t.Logf("%d commits are there; %s", rows.Count, fsck.Last)
}

// spilled reports whether a backup's journal has anything in its file, which has no name.
func (fx *fixture) spilled(h *lab.Host) bool {
	fx.t.Helper()
	out := h.Must(fx.t, "sh", "-c", `for f in /proc/$(systemctl show -P MainPID xlft-receiver.service)/fd/*; do
	case $(readlink $f) in */journal/disk-*) head -c 65536 $f | tr -d '\0' | wc -c; exit ;; esac
done
echo "no journal file" >&2
exit 1`)
	n, err := strconv.Atoi(strings.TrimSpace(out))
	check(fx.t, err)
	return n > 0
}

// The domain writes more in one epoch than the backup holds in memory, and its host dies: the writes in the journal's
// spill file are on the disk too.
func TestDiskSpill(t *testing.T) {
	lab.Long(t)
	fx := diskFixtureOn(t, mirror, func(s *ft.Settings) {
		s.AckTimeout = 3 * time.Minute
		s.More += "[receive]\ndisk_journal = \"64MiB\"\ndisk_journal_file = \"192MiB\"\n"
	})
	fx.guest.Tools = true
	fx.boot()
	fx.protect()
	from, to := fx.home, fx.backup()
	all := fx.scribes(4, 1)
	all.await(fx, 3)
	fio := fx.dial()
	check(t, fio.SetDeadline(time.Now().Add(3*patience)))

	// A backup acks an epoch when its restore has the previous epoch.
	fx.signal(to, "STOP", "restore-worker")
	started := make(chan error, 1) // the answer is held like all output
	go func() { started <- fio.FioStart(probe.FioVerify("/dev/xvda", 44, 2, "--offset=16M", "--bs=64k")...) }()
	begun := time.Now()
	fx.until(patience, func() error {
		if !fx.spilled(to) {
			return fmt.Errorf("nothing is in the journal's file")
		}
		return nil
	})
	r := fx.status(from)
	t.Logf("after %v the journal went on in its file; checkpoint %d was the last one", round(time.Since(begun)), r.Epoch)
	if !r.Protected {
		t.Fatalf("not protected any more: %s", r.State)
	}
	fx.signal(to, "CONT", "restore-worker")
	// The next epoch was under way; the one after it has most of the writes.
	fx.await(from, "a checkpoint that spilled", func(now ft.Row) bool { return now.Epoch >= r.Epoch+2 })
	from.Kill()
	fx.awaitTakeover(to)
	all.more(fx, 3)
	all.end(fx)
	all.judge(fx)
	check(t, <-started)
	res, err := fio.FioWait()
	check(t, err)
	check(t, res.Err())
	t.Logf("fio wrote %d KiB and verified %d KiB", res.Written>>10, res.Read>>10)
}

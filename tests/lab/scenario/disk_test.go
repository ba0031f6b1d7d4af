//go:build lab

package scenario

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

var deaths = flag.Int("scenario.deaths", 1, "how many hosts die under a guest with a disk, in each test")

const (
	diskPath   = "/var/lib/xlft-disks/web1-xvda"
	volumePath = "/dev/xlft/web1-xvda"
	diskMiB    = 64
	diskSpec   = "script=block-xlft,vdev=xvda,access=rw,target=web1/xvda"
)

// storage is where a guest's disk is.
type storage string

const (
	mirror storage = "mirror" // each host has its own copy
	volume storage = "volume" // the same on a logical volume, with direct I/O
	shared storage = "shared" // both hosts see the lab's SAN, and fence each other
	mixed  storage = "mixed"  // xvda is shared, and there is a mirrored xvdc
)

// mirrors reports whether each host has its own copy of xvda.
func (k storage) mirrors() bool { return k == mirror || k == volume }

// eachStorage runs a test with several kinds; all but the usual one are long.
func eachStorage(t *testing.T, usual storage, kinds []storage, test func(*testing.T, *fixture), set ...func(*ft.Settings)) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			if kind != usual {
				lab.Long(t)
			}
			test(t, diskFixtureOn(t, kind, set...))
		})
	}
}

// diskFixture returns fresh hosts with xlft, and a disk for the guest on both.
func diskFixture(t *testing.T) *fixture {
	t.Helper()
	return diskFixtureOn(t, mirror)
}

func diskFixtureOn(t *testing.T, kind storage, set ...func(*ft.Settings)) *fixture {
	t.Helper()
	fx := fresh(t)
	s := ft.Usual
	fx.kind = kind
	fx.guest.Disks = []string{diskSpec}
	s.More = fmt.Sprintf("[domain.web1.disk.xvda]\npath = %q\n", fx.xvda())
	switch kind {
	case volume:
		s.More += "cache = \"none\"\n"
	case shared, mixed:
		s.More += "storage = \"shared\"\n"
		fx.fence(&s)
	}
	if kind == mixed {
		s.More += fmt.Sprintf("[domain.web1.disk.xvdc]\npath = %q\n", diskPath)
		fx.guest.Disks = append(fx.guest.Disks, strings.ReplaceAll(diskSpec, "xvda", "xvdc"))
	}
	for _, f := range set {
		f(&s)
	}
	fx.install(s)
	for _, h := range fx.Hosts() {
		fx.makeDisk(h)
	}
	return fx
}

// fence makes the hosts fence each other.
func (fx *fixture) fence(s *ft.Settings) {
	fx.t.Helper()
	s.Fence = true
	var err error
	fx.power, err = fx.ServePower(fx.t.Context())
	check(fx.t, err)
}

// makeDisk creates an empty disk for the guest on a host, unless the disk is shared.
func (fx *fixture) makeDisk(h *lab.Host) {
	fx.t.Helper()
	if fx.kind == shared {
		return
	}
	if fx.kind == volume {
		h.Must(fx.t, "sh", "-c", `set -e; truncate -s "$(($1 + 8))M" /var/lib/xlft-volumes; dev=$(losetup -f --show /var/lib/xlft-volumes)
vgcreate -q -s 1M "$2" "$dev"; lvcreate -q -y -L "$1M" -n "$3" "$2"`, "sh", fmt.Sprint(diskMiB), path.Base(path.Dir(volumePath)), path.Base(volumePath))
		return
	}
	size := diskMiB
	if fx.kind == mixed {
		size /= 4 // enough for fio; all of it is compared
	}
	h.Must(fx.t, "sh", "-c", `mkdir -p "${1%/*}" && truncate -s "$2M" "$1"`, "sh", diskPath, fmt.Sprint(size))
}

// A disk is used by the host, which makes a file system on it, and then by a domain, where it is attached and detached
// while the domain runs.
func TestDiskAttach(t *testing.T) {
	lab.Long(t)
	fx := diskFixture(t)
	h := fx.home
	dev := strings.TrimSpace(h.Must(t, "xlft", "disk", "attach", "web1/xvda"))
	out := h.Must(t, "sh", "-c", `set -e; mkfs.ext4 -q "$1"; mount "$1" /mnt; cp /usr/bin/tcpdump /mnt/; sync; umount /mnt; e2fsck -f -n "$1" 2>&1
mount "$1" /mnt; cmp /usr/bin/tcpdump /mnt/tcpdump; umount /mnt`, "sh", dev)
	t.Logf("%s: %s", dev, strings.TrimSpace(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]))
	t.Log(h.Must(t, "xlft", "disk", "status"))
	h.Must(t, "xlft", "disk", "detach", "web1/xvda")
	fx.until(soon, func() error {
		if out, err := h.Run(within(t, soon), "systemctl", "is-active", "xlft-disk@web1.service"); err == nil {
			return fmt.Errorf("the disk server is %s after its last disk", strings.TrimSpace(out))
		}
		return nil
	})
	h.Must(t, "sh", "-c", `loop=$(losetup -f --show "$1"); mount -o ro $loop /mnt; cmp /usr/bin/tcpdump /mnt/tcpdump; umount /mnt; losetup -d $loop`, "sh", diskPath)

	fx.guest.Disks = nil
	fx.boot()
	h.Must(t, "xl", "block-attach", "web1", diskSpec)
	fx.until(soon, func() error { return fx.ask().WriteBlock(7, 4711) })
	n, err := fx.ask().ReadBlock(7)
	check(t, err)
	if n != 4711 {
		t.Errorf("block 7 has %d, want 4711", n)
	}
	if size, err := fx.client.ReadBlock(diskMiB << 20 >> 12); err == nil {
		t.Errorf("a block beyond the end has %d", size)
	}
	h.Must(t, "xl", "block-detach", "web1", "xvda")
	fx.until(soon, func() error {
		if out := h.Must(t, "xlft", "disk", "status"); strings.Contains(out, "xvda") {
			return fmt.Errorf("still served:\n%s", out)
		}
		return nil
	})
	got := h.Must(t, "sh", "-c", `dd if="$1" bs=4096 skip=7 count=1 2>/dev/null | od -A n -t u8 -N 8`, "sh", diskPath)
	if strings.TrimSpace(got) != "4711" {
		t.Errorf("block 7 of the file has %s", got)
	}

	// A disk that can't be attached is refused with the reason.
	fx.refused(h, "[domain.web1.disk.xvdz]", "xlft", "disk", "attach", "web1/xvdz")
	h.Must(t, "mv", diskPath, diskPath+".away")
	fx.refused(h, "no such file", "xlft", "disk", "attach", "web1/xvda")
	h.Must(t, "mv", diskPath+".away", diskPath)
}

// A scribe is a client that makes the guest write blocks, one after the other, and knows which writes were acknowledged
// as durable. When the guest's host dies the scribe continues over the same connection.
type scribe struct {
	c    *probe.Client
	stop chan struct{}
	done chan error

	mu     sync.Mutex
	acked  map[int64]uint64
	count  int
	newest asked // newest write, perhaps without an answer yet
}

// asked is a write.
type asked struct {
	block int64
	n     uint64
}

const scribeBlocks = 32

func (fx *fixture) scribe(first int64, random *rand.Rand) *scribe {
	s := &scribe{c: fx.dial(), stop: make(chan struct{}), done: make(chan error, 1), acked: map[int64]uint64{}}
	check(fx.t, s.c.SetDeadline(time.Now().Add(2*patience)))
	go func() {
		for {
			select {
			case <-s.stop:
				s.done <- nil
				return
			default:
			}
			a := asked{first + random.Int64N(scribeBlocks), random.Uint64()}
			s.mu.Lock()
			s.newest = a
			s.mu.Unlock()
			if err := s.c.WriteBlock(a.block, a.n); err != nil {
				s.done <- err
				return
			}
			s.mu.Lock()
			s.acked[a.block] = a.n
			s.count++
			s.mu.Unlock()
		}
	}()
	return s
}

func (s *scribe) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// scribes work side by side, the first one from block 0 on.
type scribes []*scribe

func (fx *fixture) scribes(n int, seed uint64) (all scribes) {
	for i := range n {
		all = append(all, fx.scribe(int64(i)*scribeBlocks, rand.New(rand.NewPCG(seed, uint64(i)))))
	}
	return all
}

// await waits until each one has so many answers.
func (all scribes) await(fx *fixture, n int) {
	fx.t.Helper()
	fx.until(patience, func() error {
		for i, s := range all {
			select {
			case err := <-s.done:
				fx.t.Fatalf("scribe %d: %v", i, err)
			default:
			}
			if got := s.written(); got < n {
				return fmt.Errorf("scribe %d has %d answers, of %d", i, got, n)
			}
		}
		return nil
	})
}

// more waits until each one has so many more answers than any of them has now.
func (all scribes) more(fx *fixture, n int) {
	fx.t.Helper()
	most := 0
	for _, s := range all {
		most = max(most, s.written())
	}
	all.await(fx, most+n)
}

func (all scribes) written() (n int) {
	for _, s := range all {
		n += s.written()
	}
	return n
}

// end ends all scribes in order.
func (all scribes) end(fx *fixture) {
	fx.t.Helper()
	for i, s := range all {
		close(s.stop)
		if err := <-s.done; err != nil {
			fx.t.Fatalf("scribe %d: %v", i, err)
		}
		s.c.Close()
	}
}

// judge makes the guest read every block that was acknowledged as durable. A write without an answer may be on the disk
// or not.
func (all scribes) judge(fx *fixture) {
	fx.t.Helper()
	checked := 0
	for _, s := range all {
		for b, want := range s.acked {
			n, err := fx.ask().ReadBlock(b)
			check(fx.t, err)
			checked++
			if n != want && (asked{b, n}) != s.newest {
				fx.t.Errorf("block %d has %d, but %d was answered as durable", b, n, want)
			}
		}
	}
	fx.t.Logf("%d blocks are as was answered", checked)
}

// The host dies while the guest writes to its disk: the backup's disk, which was an empty file before, has every write
// that was acknowledged as durable, and no torn write. Then the same in the other direction, after a new copy to the
// disk of the host that came back.
func TestDiskTakeover(t *testing.T) {
	lab.Long(t)
	eachStorage(t, mirror, []storage{mirror, shared, volume}, testDiskTakeover)
}

func testDiskTakeover(t *testing.T, fx *fixture) {
	fx.chooseSeed()
	fx.boot()
	check(t, fx.ask().WriteBlock(1000, 1000))
	for round := range *deaths {
		random := rand.New(rand.NewPCG(*seed, uint64(round)))
		from, to := fx.home, fx.backup()
		fx.protect()
		all := fx.scribes(6, *seed+uint64(round))
		all.await(fx, 3)
		r := fx.status(from)
		if !r.Protected {
			t.Fatalf("not protected any more: %s", r.State)
		}
		<-time.After(time.Duration(random.Int64N(int64(3 * time.Second))))
		from.Kill()
		before := all.written()
		p := r.Primary
		t.Logf("round %d: killed %s after checkpoint %d and %d durable writes; pause median %v (suspend %v, seal %v, capture %v, resume %v), ack after %v",
			round+1, from.Name(), r.Epoch, before, round2(p.PauseMedian.Total), round2(p.PauseMedian.Suspend), round2(p.PauseMedian.Seal),
			round2(p.PauseMedian.Capture), round2(p.PauseMedian.Resume), round2(p.AckMedian))
		fx.awaitTakeover(to)
		all.more(fx, 5)
		all.end(fx)
		all.judge(fx)
		if n, err := fx.ask().ReadBlock(1000); err != nil || n != 1000 {
			t.Errorf("block 1000, written before the protection: %d, %v", n, err)
		}
		fx.awaitDomains(to, fx.guest.Name)
		t.Log(to.Must(t, "xlft", "disk", "status"))
		if round+1 < *deaths {
			fx.revive(from)
			fx.makeDisk(from)
		}
	}
}

// The disk server is killed, and restarted, under a protected guest that writes: no write fails, no acknowledged write
// is lost, and protection is restored automatically.
func TestDiskServerDies(t *testing.T) {
	lab.Long(t)
	eachStorage(t, mirror, []storage{mirror, shared}, testDiskServerDies)
}

func testDiskServerDies(t *testing.T, fx *fixture) {
	fx.boot()
	fx.protect()
	random := rand.New(rand.NewPCG(1, 1))
	s := fx.scribe(0, random)
	for _, how := range []string{"systemctl kill --signal=KILL xlft-disk@web1.service", "systemctl restart xlft-disk@web1.service"} {
		before := s.written()
		begun := time.Now()
		fx.home.Must(t, "sh", "-c", how)
		fx.until(patience, func() error {
			select {
			case err := <-s.done:
				t.Fatalf("%s: a write failed: %v", how, err)
			default:
			}
			if n := s.written() - before; n < 5 {
				return fmt.Errorf("%s: %d answers", how, n)
			}
			return nil
		})
		t.Logf("%s: five more writes after %v", how, round(time.Since(begun)))
		fx.await(fx.home, "protected again", isProtected)
		t.Logf("last error: %s", fx.status(fx.home).Primary.LastError)
	}
	close(s.stop)
	check(t, <-s.done)
	for b, want := range s.acked {
		if n, err := fx.ask().ReadBlock(b); err != nil || n != want {
			t.Errorf("block %d has %d (%v), but %d was answered as durable", b, n, err, want)
		}
	}
	from, to := fx.home, fx.backup()
	from.Kill()
	fx.awaitTakeover(to)
	for b, want := range s.acked {
		if n, err := fx.ask().ReadBlock(b); err != nil || n != want {
			t.Errorf("after the takeover block %d has %d (%v), but %d was answered as durable", b, n, err, want)
		}
	}
}

// Kemari's own measure: how much slower a guest writes for being protected, with O_SYNC and with an fsync after each
// write. Kemari lost 90 % and 69 % when it synchronised on every event, and 44 % on the second with its protocol. xlft
// answers a write when this host's disk has it; the guest loses the time of the checkpoints' pauses and the processor
// time of the copying.
func TestDiskKemari(t *testing.T) {
	lab.Long(t)
	const seconds = 15
	fx := diskFixtureOn(t, mirror, func(s *ft.Settings) { s.Mode = "interval" }) // the loss by epoch_max
	fx.guest.Tools = true
	fx.boot()
	check(t, fx.ask().Mkfs())
	modes := []struct {
		name string
		args []string
	}{{"O_SYNC", []string{"--sync=1"}}, {"write and fsync", []string{"--fsync=1"}}}
	measure := func() (rates []float64) {
		for _, m := range modes {
			check(t, fx.ask().FioStart(append([]string{"--name=k", "--filename=/data/kemari", "--size=8M", "--rw=write", "--bs=4k", "--overwrite=1",
				fmt.Sprint("--runtime=", seconds), "--time_based"}, m.args...)...))
			r, err := fx.ask().FioWait()
			check(t, err)
			check(t, r.Err())
			rates = append(rates, float64(r.Written)/seconds/1024)
		}
		return rates
	}
	alone := measure()
	// Checkpoints cause most of the loss: with fewer checkpoints less is lost, and answers to clients come later. A disk
	// write does not wait for a checkpoint, so the last figure is about the cost of the mirror alone.
	for i, epoch := range []time.Duration{ft.Usual.EpochMax, 2 * time.Second, 20 * time.Second} {
		if i > 0 {
			fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
		}
		fx.home.Must(t, "sed", "-i", fmt.Sprintf(`s/^epoch_max = .*/epoch_max = "%v"/`, epoch), "/etc/xlft/xlft.toml")
		fx.protect()
		with := measure()
		r := fx.status(fx.home)
		if !r.Protected {
			t.Fatalf("not protected: %s", r.State)
		}
		p := r.Primary
		t.Logf("epoch_max %v: %d checkpoints; pause median %v, ack after %v",
			epoch, p.Checkpoints, round(p.PauseMedian.Total), round(p.AckMedian))
		for i, m := range modes {
			t.Logf("%s: alone %.0f KiB/s, protected %.0f KiB/s: %.0f %% less", m.name, alone[i], with[i], 100*(1-with[i]/alone[i]))
		}
	}

	// The disk moves with the domain, and the copy that stays is recorded as outdated.
	from, to := fx.home, fx.backup()
	t.Log(strings.TrimSpace(from.Must(t, "xl", "ft-failover", fx.guest.Name)))
	fx.home = to
	fx.awaitDomains(from)
	check(t, fx.ask().Unmount())
	fsck, err := fx.ask().Fsck()
	check(t, err)
	check(t, fsck.Err())
	fx.refused(from, "outdated", "xlft", "disk", "attach", "web1/xvda")
}

// Reasons against a copy are reported before anything is changed. An error of the backup's disk ends the protection,
// with a report, and has no other effect.
func TestDiskErrors(t *testing.T) {
	lab.Long(t)
	fx := diskFixture(t)
	fx.guest.Tools = true
	fx.boot()
	from, to := fx.home, fx.backup()
	refused := func(words, how, undo string) {
		t.Helper()
		to.Must(t, "sh", "-c", how)
		fx.refused(from, words, "xl", "ft-start", "web1")
		to.Must(t, "sh", "-c", undo)
	}
	refused("no such file", "mv "+diskPath+" /root/", "mv /root/web1-xvda "+diskPath)
	refused("the primary's has 67108864", "truncate -s 32M "+diskPath, fmt.Sprintf("truncate -s %dM %s", diskMiB, diskPath))
	refused("in use by another process", "flock "+diskPath+" sleep 1000 >/dev/null 2>&1 & sleep 1", "pkill sleep")
	refused("no [domain.web1.disk.xvda]", "cp "+ft.ConfigPath+" /root/; sed -i '/domain.web1.disk/,$d' "+ft.ConfigPath+"; systemctl restart xlft-receiver.service",
		"cp /root/xlft.toml "+ft.ConfigPath+"; systemctl restart xlft-receiver.service")

	// A disk that can't be written to: a file system that is full under a sparse file.
	to.Must(t, "sh", "-c", "mkdir -p /small && mount -t tmpfs -o size=8M none /small && cp --sparse=always "+diskPath+" /small/disk && sed -i 's|^path.*|path = \"/small/disk\"|' "+
		ft.ConfigPath+" && systemctl restart xlft-receiver.service")
	fx.protect()
	k := fx.talk(10)
	check(t, fx.ask().FioStart("--name=fill", "--filename=/dev/xvda", "--rw=write", "--bs=256k", "--size=16M", "--direct=1"))
	fx.awaitUnprotected()
	st := fx.status(from)
	if st.Primary == nil || !strings.Contains(st.Primary.LastError, "no space left") {
		t.Errorf("the status does not say why: %+v", st.Primary)
	}
	res, err := fx.ask().FioWait()
	check(t, err)
	check(t, res.Err())
	fx.complete(k.end())
}

// The host dies while the guest runs fio and SQLite on an ext4 file system: fio continues and verifies everything that
// it wrote, no acknowledged commit is missing, no commit is torn, and the file system is clean. Each host that dies
// comes back with an empty disk.
func TestDiskPrograms(t *testing.T) {
	eachStorage(t, mixed, []storage{mirror, shared, mixed}, testDiskPrograms)
}

func testDiskPrograms(t *testing.T, fx *fixture) {
	fx.chooseSeed()
	random := rand.New(rand.NewPCG(*seed, 2))
	fx.guest.Tools = true
	fx.boot()
	check(t, fx.ask().Mkfs())
	var ledger probe.Ledger
	for round := range *deaths {
		from, to := fx.home, fx.backup()
		fx.protect()
		fio, db := fx.dial(), fx.dial()
		for _, c := range []*probe.Client{fio, db} {
			check(t, c.SetDeadline(time.Now().Add(3*patience)))
		}
		file := "fio"
		if fx.kind == mixed {
			file = "/dev/xvdc"
		}
		check(t, fio.FioStart(probe.FioVerify(file, 4, 3, "--rate_iops=,100")...))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- ledger.Run(ctx, db) }()
		commits := func(n uint64) {
			before := ledger.Held()
			fx.until(patience, func() error {
				select {
				case err := <-ended:
					t.Fatalf("SQLite's client: %v", err)
				default:
				}
				if got := ledger.Held() - before; got < n {
					return fmt.Errorf("%d commits, of %d", got, n)
				}
				return nil
			})
		}
		commits(5)
		<-time.After(time.Duration(random.Int64N(int64(4 * time.Second))))
		r := fx.status(from)
		if !r.Protected {
			t.Fatalf("not protected any more: %s", r.State)
		}
		from.Kill()
		at := ledger.Held()
		fx.awaitTakeover(to)
		commits(5)
		stop()
		check(t, <-ended)
		rows, err := fx.ask().Rows()
		check(t, err)
		check(t, ledger.Judge(rows))
		res, err := fio.FioWait()
		check(t, err)
		check(t, res.Err())
		fio.Close()
		db.Close()
		check(t, fx.ask().Integrity())
		check(t, fx.ask().Unmount())
		fsck, err := fx.ask().Fsck()
		check(t, err)
		check(t, fsck.Err())
		check(t, fx.ask().Mount())
		rows, err = fx.ask().Rows()
		check(t, err)
		check(t, ledger.Judge(rows))
		t.Logf("round %d: %s died after checkpoint %d and %d commits; now %d; fio wrote %d KiB and verified %d KiB; %s", round+1, from.Name(),
			r.Epoch, at, rows.Count, res.Written>>10, res.Read>>10, fsck.Last)
		fx.awaitDomains(to, fx.guest.Name)
		if round+1 < *deaths {
			fx.revive(from)
			fx.makeDisk(from)
		}
	}
}

func round2(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

//go:build lab

package scenario

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

const (
	diskPath = "/var/lib/xlft-disks/web1-xvda"
	diskMiB  = 64
	diskSpec = "script=block-xlft,vdev=xvda,access=rw,target=web1/xvda"
)

// diskWorld gives fresh hosts with xlft, and a disk for the guest on both.
func diskWorld(t *testing.T) *world {
	t.Helper()
	standing = nil // its hosts are taken
	w := &world{t: t, guest: lab.NewGuest("web1", 10), saved: map[*lab.Host][]byte{}, over: true}
	w.Lab = lab.Start(t)
	w.home = w.A
	t.Cleanup(func() {
		if t.Failed() {
			w.report()
		}
	})
	s := ft.Usual
	s.More = fmt.Sprintf("[domain.web1.disk.xvda]\npath = %q\n", diskPath)
	w.install(s)
	for _, h := range w.Hosts() {
		w.makeDisk(h)
	}
	w.guest.Disks = []string{diskSpec}
	return w
}

// makeDisk gives a host an empty disk for the guest.
func (w *world) makeDisk(h *lab.Host) {
	w.t.Helper()
	h.Must(w.t, "sh", "-c", `mkdir -p "${1%/*}" && truncate -s "$2M" "$1"`, "sh", diskPath, fmt.Sprint(diskMiB))
}

// A disk is a block device of the host with a file system, and then a domain's, that comes and goes while the domain
// runs.
func TestDiskAttach(t *testing.T) {
	w := diskWorld(t)
	h := w.home
	dev := strings.TrimSpace(h.Must(t, "xlft", "disk", "attach", "web1/xvda"))
	out := h.Must(t, "sh", "-c", `set -e; mkfs.ext4 -q "$1"; mount "$1" /mnt; cp /usr/bin/tcpdump /mnt/; sync; umount /mnt; e2fsck -f -n "$1" 2>&1
mount "$1" /mnt; cmp /usr/bin/tcpdump /mnt/tcpdump; umount /mnt`, "sh", dev)
	t.Logf("%s: %s", dev, strings.TrimSpace(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]))
	t.Log(h.Must(t, "xlft", "disk", "status"))
	h.Must(t, "xlft", "disk", "detach", "web1/xvda")
	w.until(soon, func() error {
		if out, err := h.Run(within(t, soon), "systemctl", "is-active", "xlft-disk@web1.service"); err == nil {
			return fmt.Errorf("the disk server is %s after its last disk", strings.TrimSpace(out))
		}
		return nil
	})
	h.Must(t, "sh", "-c", `loop=$(losetup -f --show "$1"); mount -o ro $loop /mnt; cmp /usr/bin/tcpdump /mnt/tcpdump; umount /mnt; losetup -d $loop`, "sh", diskPath)

	w.guest.Disks = nil
	w.boot()
	h.Must(t, "xl", "block-attach", "web1", diskSpec)
	w.until(soon, func() error { return w.ask().WriteBlock(7, 4711) })
	n, err := w.ask().ReadBlock(7)
	check(t, err)
	if n != 4711 {
		t.Errorf("block 7 has %d, want 4711", n)
	}
	if size, err := w.client.ReadBlock(diskMiB << 20 >> 12); err == nil {
		t.Errorf("a block beyond the end has %d", size)
	}
	h.Must(t, "xl", "block-detach", "web1", "xvda")
	w.until(soon, func() error {
		if out := h.Must(t, "xlft", "disk", "status"); strings.Contains(out, "xvda") {
			return fmt.Errorf("still served:\n%s", out)
		}
		return nil
	})
	got := h.Must(t, "sh", "-c", `dd if="$1" bs=4096 skip=7 count=1 2>/dev/null | od -A n -t u8 -N 8`, "sh", diskPath)
	if strings.TrimSpace(got) != "4711" {
		t.Errorf("block 7 of the file has %s", got)
	}

	// What can't be attached is refused with the reason.
	w.refused(h, "[domain.web1.disk.xvdz]", "xlft", "disk", "attach", "web1/xvdz")
	h.Must(t, "mv", diskPath, diskPath+".away")
	w.refused(h, "no such file", "xlft", "disk", "attach", "web1/xvda")
	h.Must(t, "mv", diskPath+".away", diskPath)
}

// The host dies while the guest writes to its disk: every write that was answered as durable is there, none is torn,
// and the backup's disk is the primary's up to the checkpoint that the guest runs on from.
func TestDiskTakeover(t *testing.T) {
	const blocks = 256
	w := diskWorld(t)
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-scenario.seed=%d", *seed)
	random := rand.New(rand.NewPCG(*seed, 1))
	w.boot()
	acked := map[int64]uint64{} // what the guest was told is on the disk
	for b := range int64(blocks) {
		acked[b] = uint64(b)
		check(t, w.ask().WriteBlock(b, uint64(b)))
	}
	for round := range 2 {
		from, to := w.home, w.backup()
		w.protect()
		r := w.await(from, "three checkpoints", func(r ft.Row) bool { return r.Protected && r.Epoch >= 3 })
		t.Logf("pause median %v (suspend %v, seal %v, capture %v, resume %v)", round2(r.Primary.PauseMedian.Total),
			round2(r.Primary.PauseMedian.Suspend), round2(r.Primary.PauseMedian.Seal), round2(r.Primary.PauseMedian.Capture), round2(r.Primary.PauseMedian.Resume))
		end := time.Now().Add(time.Duration(random.Int64N(int64(4*time.Second))) + time.Second)
		writes := 0
		for time.Now().Before(end) {
			b, n := random.Int64N(blocks), random.Uint64()
			check(t, w.ask().WriteBlock(b, n))
			acked[b] = n
			writes++
		}
		from.Kill()
		t.Logf("round %d: killed %s after %d durable writes", round, from.Name(), writes)
		w.await(to, "taken over", func(r ft.Row) bool { return r.Role == "owner" })
		w.home = to
		for b, want := range acked {
			n, err := w.ask().ReadBlock(b)
			check(t, err)
			if n != want {
				t.Errorf("block %d has %d, but %d was answered", b, n, want)
			}
		}
		b := random.Int64N(blocks)
		check(t, w.ask().WriteBlock(b, 1))
		acked[b] = 1
		w.awaitDomains(to, w.guest.Name)
		t.Log(to.Must(t, "xlft", "disk", "status"))
		w.revive(from)
		w.makeDisk(from)
	}
}

func round2(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

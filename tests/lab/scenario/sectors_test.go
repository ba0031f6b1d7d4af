//go:build lab

package scenario

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

const (
	volume4K = "/dev/web1-4k"
	volumeOn = "/var/lib/web1-4k" // the file behind it
	thinDisk = "/dev/mapper/web1-thin"
)

// sectorsFixture returns fresh hosts with xlft. On the first one web1 has a volume with sectors of 4096 bytes and a
// thin volume.
func sectorsFixture(t *testing.T) (*fixture, *lab.Host) {
	t.Helper()
	fx := fresh(t)
	s := ft.Usual
	s.More = fmt.Sprintf("[domain.web1.disk.xvda]\npath = %q\ncache = \"none\"\n[domain.web1.disk.xvdb]\npath = %q\n", volume4K, thinDisk)
	fx.install(s)
	h := fx.home
	h.Must(t, "sh", "-c", fmt.Sprintf(`set -e; truncate -s 64M %[1]s; ln -s "$(losetup -b 4096 -f --show %[1]s)" %[2]s
modprobe dm-thin-pool; truncate -s 4M /var/lib/thin-meta; truncate -s 64M /var/lib/thin-data
dmsetup create web1-pool --table "0 131072 thin-pool $(losetup -f --show /var/lib/thin-meta) $(losetup -f --show /var/lib/thin-data) 128 0"
dmsetup message web1-pool 0 "create_thin 0"; dmsetup create web1-thin --table "0 65536 thin /dev/mapper/web1-pool 0"`, volumeOn, volume4K))
	return fx, h
}

// attached attaches a disk of web1, runs a shell command with the device as $1, and detaches it.
func attached(t *testing.T, h *lab.Host, vdev, command string) string {
	t.Helper()
	dev := strings.TrimSpace(h.Must(t, "xlft", "disk", "attach", "web1/"+vdev))
	out := strings.TrimSpace(h.Must(t, "sh", "-c", "set -e; "+command, "sh", dev))
	h.Must(t, "xlft", "disk", "detach", "web1/"+vdev)
	return out
}

// A device of xlft has the sectors of its storage if the disk is new, so that partitions made without xlft are found;
// a disk that an earlier version served keeps those of 512 bytes. What is discarded is freed, on a thin volume too.
func TestSectors(t *testing.T) {
	lab.Long(t)
	_, h := sectorsFixture(t)
	// The begin of a partition table for sectors of 4096 bytes.
	h.Must(t, "sh", "-c", `printf 'EFI PART\0\0\1\0' | dd of="$1" bs=4096 seek=1 conv=sync,fsync status=none`, "sh", volume4K)
	if got := attached(t, h, "xvda", `blockdev --getss "$1"`); got != "4096" {
		t.Errorf("a disk that was partitioned without xlft has sectors of %s bytes, want 4096", got)
	}
	used := func() int {
		t.Helper()
		n, err := strconv.Atoi(strings.Fields(h.Must(t, "du", "-k", volumeOn))[0])
		check(t, err)
		return n
	}
	attached(t, h, "xvda", `dd if=/dev/urandom of="$1" bs=1M seek=32 count=16 oflag=direct status=none`)
	full := used()
	attached(t, h, "xvda", `blkdiscard -o 32M -l 16M "$1"`)
	if now := used(); now > full-15<<10 {
		t.Errorf("16 MiB were discarded, and the file has %d KiB where it had %d", now, full)
	}
	h.Must(t, "sh", "-c", `echo '{"state":"up-to-date"}' >/var/lib/xlft/disks/web1,xvda.json`)
	if got := attached(t, h, "xvda", `blockdev --getss "$1"`); got != "512" {
		t.Errorf("a disk that an earlier version served has sectors of %s bytes", got)
	}

	mapped := func() int {
		t.Helper()
		f := strings.Fields(h.Must(t, "dmsetup", "status", "web1-thin"))
		n, err := strconv.Atoi(f[3])
		check(t, err)
		return n
	}
	attached(t, h, "xvdb", `dd if=/dev/urandom of="$1" bs=1M count=24 oflag=direct status=none`)
	was := mapped()
	attached(t, h, "xvdb", `blkdiscard -o 4M -l 16M "$1"`)
	if now := mapped(); now > was-16<<11 {
		t.Errorf("16 MiB of a thin volume were discarded, and %d of %d sectors are mapped", now, was)
	}
}

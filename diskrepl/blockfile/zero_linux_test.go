package blockfile

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// allocated returns how many bytes of a file have room on the storage.
func allocated(t *testing.T, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// What a domain trims or zeroes is freed, whatever the sectors of the storage are and
// wherever the range begins; nothing else changes.
func TestTrimFrees(t *testing.T) {
	const size = 1 << 20
	for _, sector := range []int{512, 4096} {
		for _, direct := range []bool{false, true} {
			for _, zero := range []bool{false, true} {
				t.Run(fmt.Sprint("sectors of ", sector, ", direct ", direct, ", zero ", zero), func(t *testing.T) {
					d, behind := openLoop(t, size, sector, direct)
					if got := d.Sector(); got != int64(sector) {
						t.Errorf("sectors of %d bytes", got)
					}
					if err := d.WriteAt(bytes.Repeat([]byte{7}, size), 0, true); err != nil {
						t.Fatal(err)
					}
					// All but the first and the last 512 bytes.
					change := func() error { return d.Trim(512, size-1024, true) }
					if zero {
						change = func() error { return d.Zero(512, size-1024, false, true) }
					}
					if err := change(); err != nil {
						t.Fatal(err)
					}
					if n := allocated(t, behind); n > 64<<10 {
						t.Errorf("%d of %d bytes are still allocated", n, size)
					}
					got := make([]byte, size)
					if err := d.ReadAt(got, 0); err != nil {
						t.Fatal(err)
					}
					edge := bytes.Repeat([]byte{7}, 512)
					if !bytes.Equal(got[:512], edge) || !bytes.Equal(got[size-512:], edge) {
						t.Error("what lies beside it changed")
					}
					if zero && !bytes.Equal(got[512:size-512], make([]byte, size-1024)) {
						t.Error("it does not read as zeroes")
					}
				})
			}
		}
	}
}

// Less than a sector is zeroed too, and a trim of it does nothing.
func TestLessThanASector(t *testing.T) {
	d, _ := openLoop(t, 1<<20, 4096, false)
	if err := d.WriteAt(bytes.Repeat([]byte{7}, 8192), 0, false); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(4000, 200, true, true); err != nil {
		t.Fatal(err)
	}
	if err := d.Trim(100, 300, true); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192)
	if err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if want := i < 4000 || i >= 4200; (b == 7) != want {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}

// A thin volume (dm-thin) frees what a domain trims: it takes discards, and can't
// write zeroes.
func TestTrimOfThinVolume(t *testing.T) {
	const pool, thin = "xlft-test-pool", "xlft-test-thin"
	if os.Getuid() != 0 {
		t.Skip("device-mapper needs root")
	}
	if out, err := exec.Command("dmsetup", "targets").CombinedOutput(); err != nil || !strings.Contains(string(out), "thin-pool") {
		t.Skipf("no thin-pool of device-mapper here: %v: %.100s", err, out)
	}
	setup := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("dmsetup", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("dmsetup %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	meta, _, detachMeta := loop(t, 4<<20, 512)
	t.Cleanup(detachMeta)
	data, _, detachData := loop(t, 16<<20, 512)
	t.Cleanup(detachData)
	const blocks = 128 // sectors of a block of the pool
	setup("create", pool, "--table", fmt.Sprintf("0 %d thin-pool %s %s %d 0", 16<<20/512, meta, data, blocks))
	t.Cleanup(func() { exec.Command("dmsetup", "remove", pool).Run() })
	setup("message", pool, "0", "create_thin 0")
	setup("create", thin, "--table", fmt.Sprintf("0 %d thin /dev/mapper/%s 0", 8<<20/512, pool))
	t.Cleanup(func() { exec.Command("dmsetup", "remove", thin).Run() })
	d, err := Open(filepath.Join("/dev/mapper", thin), true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	mapped := func() (sectors int) {
		t.Helper()
		var from, n int
		if _, err := fmt.Sscanf(setup("status", thin), "%d %d thin %d", &from, &n, &sectors); err != nil {
			t.Fatal(err)
		}
		return sectors
	}
	if err := d.WriteAt(bytes.Repeat([]byte{7}, 8<<20), 0, true); err != nil {
		t.Fatal(err)
	}
	was := mapped()
	if err := d.Trim(512, 8<<20-1024, true); err != nil {
		t.Fatal(err)
	}
	if got := mapped(); got > 2*blocks {
		t.Errorf("%d of %d sectors are still mapped", got, was)
	}
}

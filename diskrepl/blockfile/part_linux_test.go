package blockfile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// loop makes a disk of n bytes a block device with sectors of so many bytes, and
// returns its name and that of the file behind it. The device is there until detach,
// or if it is open then, until it is closed, however the test ends.
func loop(t testing.TB, n int64, sector int) (device, file string, detach func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	file = filepath.Join(t.TempDir(), "behind")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, n); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", strconv.Itoa(sector), file).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	return device, file, func() { exec.Command("losetup", "--detach", device).Run() }
}

// openLoop opens a block device with sectors of so many bytes.
func openLoop(t testing.TB, n int64, sector int, direct bool) (d *File, behind string) {
	t.Helper()
	device, behind, detach := loop(t, n, sector)
	d, err := Open(device, direct)
	detach()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, behind
}

// soon does what waits for nobody.
func soon(t *testing.T, do func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for another")
	}
}

// A write of sectors that the storage takes as they are waits for no other in the
// same 4096 bytes.
func TestSectorsAreWrittenAsTheyAre(t *testing.T) {
	d := create(t, 16*Align, true)
	if d.unit > leastSector {
		t.Skipf("the file system of %s takes no direct I/O of %d bytes", d.Name(), leastSector)
	}
	other := d.part.Share(0, Align) // as a write of whole blocks does
	defer d.part.Unlock(other)
	soon(t, func() error { return d.WriteAt(bytes.Repeat([]byte{7}, 512), 512, false) })
	got := make([]byte, 3*512)
	if err := d.ReadAt(got, 0); err != nil || got[511] != 0 || got[512] != 7 || got[1023] != 7 || got[1024] != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// A write of a part of a block waits for others of that block, and not for those
// elsewhere.
func TestPartialWritesElsewhere(t *testing.T) {
	d := create(t, 16*Align, true)
	d.unit = Align
	other := d.part.Lock(0, Align) // as another write of a part does
	soon(t, func() error { return d.WriteAt([]byte("here"), 8*Align+5, false) })
	done := make(chan error, 1)
	go func() { done <- d.WriteAt([]byte("there"), 100, false) }()
	select {
	case err := <-done:
		t.Errorf("two writes of parts of one block at once: %v", err)
		done <- err
	case <-time.After(20 * time.Millisecond):
	}
	d.part.Unlock(other)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Writers of all sizes, each at a place of its own in blocks that they share, lose
// nothing of each other's, whatever the sectors of the storage are.
func TestPartialWrites(t *testing.T) {
	const size = 64 * Align
	disks := map[string]func(t *testing.T) *File{
		"file": func(t *testing.T) *File { return create(t, size, true) },
		"file, whole blocks": func(t *testing.T) *File {
			d := create(t, size, true)
			d.unit = Align
			return d
		},
		"loop 512":  func(t *testing.T) *File { d, _ := openLoop(t, size, 512, true); return d },
		"loop 4096": func(t *testing.T) *File { d, _ := openLoop(t, size, 4096, true); return d },
	}
	for name, open := range disks {
		for _, piece := range []int{64, 512} {
			t.Run(fmt.Sprint(name, ", pieces of ", piece), func(t *testing.T) { writeParts(t, open(t), piece) })
		}
	}
}

// writeParts has writers write to pieces of so many bytes, each to its own.
func writeParts(t *testing.T, d *File, piece int) {
	const writers = 8
	size := int(d.Size())
	want := make([]byte, size)
	var wg sync.WaitGroup
	for w := range writers {
		r := rand.New(rand.NewPCG(rand.Uint64(), 1))
		wg.Go(func() {
			for range 300 {
				at, n := piece*(r.IntN(size/piece/writers)*writers+w), piece
				if r.IntN(2) == 0 && piece < 512 {
					n = 1 + r.IntN(piece)
				}
				b := bytes.Repeat([]byte{byte(1 + r.IntN(255))}, n)
				var err error
				if r.IntN(8) == 0 {
					clear(b)
					err = d.Zero(int64(at), int64(n), false, false)
				} else {
					err = d.WriteAt(b, int64(at), r.IntN(20) == 0)
				}
				if err != nil {
					t.Error(err)
					return
				}
				copy(want[at:], b)
			}
		})
	}
	wg.Wait()
	got := make([]byte, size)
	if err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %d, want %d", i, got[i], want[i])
		}
	}
}

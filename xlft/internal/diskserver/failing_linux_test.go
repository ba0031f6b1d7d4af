package diskserver

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/disktest"
	"xlft/xlft/primary"
)

// A weakStorage is a file system on a loop device whose own storage can be made
// full: then what the page cache took can't be written back.
type weakStorage struct {
	t   *testing.T
	dir string
}

func newWeakStorage(t *testing.T) *weakStorage {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a loop device")
	}
	dir, err := os.MkdirTemp("", "weak")
	if err != nil {
		t.Fatal(err)
	}
	w := &weakStorage{t, dir}
	t.Cleanup(func() {
		w.run("umount -l mnt; losetup -d $(cat loop); umount -l tm; true")
		os.RemoveAll(dir)
	})
	if out, err := w.try(`mkdir tm mnt; mount -t tmpfs -o size=48m none tm; truncate -s 256M tm/img
		mkfs.ext4 -q -O ^has_journal tm/img; losetup -f --show tm/img >loop; mount $(cat loop) mnt; truncate -s 4M mnt/xvda`); err != nil {
		t.Skipf("no loop device with a file system: %v: %s", err, out)
	}
	return w
}

func (w *weakStorage) try(script string) (string, error) {
	c := exec.Command("bash", "-ec", script)
	c.Dir = w.dir
	out, err := c.CombinedOutput()
	return string(out), err
}

func (w *weakStorage) run(script string) {
	w.t.Helper()
	if out, err := w.try(script); err != nil {
		w.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

func (w *weakStorage) disk() string { return filepath.Join(w.dir, "mnt", "xvda") }

func (w *weakStorage) fill() { w.run("dd if=/dev/zero of=tm/filler bs=64k 2>/dev/null || true") }
func (w *weakStorage) free() { w.run("rm tm/filler") }

// image returns what the storage has, and not what the page cache returns.
func (w *weakStorage) image() []byte {
	w.t.Helper()
	f, err := os.Open(w.disk())
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, disktest.Size)
	if _, err := f.ReadAt(b, 0); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// The backup's storage can't write back what its page cache took, and the guest
// does not flush: protection ends within seconds, the copy is recorded as
// inconsistent, and protection does not come back before the storage has all of
// the disk.
func TestStorageFails(t *testing.T) {
	w := newWeakStorage(t)
	r := newRig(t, 20*time.Millisecond, 64<<20)
	r.b.Conf.Domains["web1"].Disks["xvda"] = config.Disk{VDev: "xvda", Path: w.disk()}
	here := filepath.Join(r.a.Dir, "xvda")
	if err := os.WriteFile(here, make([]byte, disktest.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	r.protect()
	w.fill()
	data := bytes.Repeat([]byte("guest data, taken by the page cache "), disktest.Size/36)
	if err := r.server.open["xvda"].repl.WriteAt(data, 0, false); err != nil {
		t.Fatal(err)
	}
	r.await("the failure", func(st primary.Status) bool {
		return !st.Protected && strings.Contains(st.LastError, "no space left on device")
	})
	recorded := func(what string, ok func(xlft.DiskRecord) bool) {
		t.Helper()
		r.await(what, func(primary.Status) bool {
			rec, err := r.b.Store.LoadDisk("web1", "xvda")
			if err != nil {
				t.Fatal(err)
			}
			return ok(rec)
		})
	}
	recorded("recorded as failed", func(rec xlft.DiskRecord) bool {
		return rec.State == xlft.Inconsistent && strings.Contains(rec.Failed, "no space left")
	})
	w.free()
	r.await("protected again", func(st primary.Status) bool { return st.Protected })
	at := w.image()
	recorded("recorded as whole", func(rec xlft.DiskRecord) bool { return rec.State == xlft.Consistent && rec.Failed == "" })
	if !bytes.Equal(at, r.a.image()) {
		t.Error("protected, and the backup's storage is not the primary's disk")
	}
}

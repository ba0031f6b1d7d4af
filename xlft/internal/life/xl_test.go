package life

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Only the process that waits for that domain's end is ended.
func TestXL(t *testing.T) {
	proc := t.TempDir()
	add := func(pid int, comm, stdout string) {
		dir := filepath.Join(proc, fmt.Sprint(pid))
		if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(stdout, filepath.Join(dir, "fd", "1")); err != nil {
			t.Fatal(err)
		}
	}
	add(10, "xl", "/var/log/xen/xl-web1.log")
	add(11, "xl", "/var/log/xen/xl-web1.log.1")
	add(12, "xl", "/var/log/xen/xl-web1.log (deleted)")
	add(20, "xl", "/var/log/xen/xl-web10.log")
	add(21, "xl", "/var/log/xen/xl-web1.logs")
	add(22, "xl", "/dev/pts/0")
	add(23, "tail", "/var/log/xen/xl-web1.log")
	add(24, "xl", "/var/log/xen/xl-web1.log.log")
	if err := os.MkdirAll(filepath.Join(proc, "self"), 0o755); err != nil {
		t.Fatal(err)
	}
	ended := 0
	x := &XL{
		Proc: proc, LogDir: "/var/log/xen", end: func(int) error { ended++; return nil },
		openPID: func(pid int) (int, error) {
			if pid == 12 {
				return 0, unix.ESRCH
			}
			return unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		},
	}
	pids, err := x.End("web1")
	slices.Sort(pids)
	if err != nil || !slices.Equal(pids, []int{10, 11}) || ended != 2 {
		t.Errorf("%v, %d ended, %v", pids, ended, err)
	}
}

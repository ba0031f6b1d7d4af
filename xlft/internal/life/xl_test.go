package life

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Only the processes that wait for that domain's end are ended, whatever their logs
// are called.
func TestXL(t *testing.T) {
	proc, logs := t.TempDir(), t.TempDir()
	add := func(pid int, comm, log string, lines ...string) {
		dir := filepath.Join(proc, fmt.Sprint(pid))
		if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if !filepath.IsAbs(log) {
			log = filepath.Join(logs, log)
		}
		if err := os.WriteFile(log, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil && log != os.DevNull {
			t.Fatal(err)
		}
		if err := os.Symlink(log, filepath.Join(dir, "fd", "1")); err != nil {
			t.Fatal(err)
		}
	}
	waits := func(name string, domid, pid int) string {
		return fmt.Sprintf("Waiting for domain %s (domid %d) to die [pid %d]", name, domid, pid)
	}
	add(10, "xl", "xl-web1.log", waits("web1", 7, 10))
	add(11, "xl", "xl-web1--incoming.log.1", "x", waits("web1", 7, 11), "y")
	add(12, "xl", "xl-gone.log", waits("web1", 7, 12))
	add(13, "xl", "xl-old name.log", waits("web1", 3, 13), "Domain 3 has shut down", "Done. Rebooting now", waits("web1", 7, 13))
	add(20, "xl", "xl-web10.log", waits("web10", 77, 20))
	add(21, "xl", "xl-web1.log.3", waits("web1", 7, 21), "Done. Rebooting now", waits("web1", 9, 21))
	add(22, "xl", os.DevNull)
	add(23, "tail", "xl-web1.log.4", waits("web1", 7, 23))
	add(24, "xl", "xl-web1.log.5", waits("web1", 7, 10)) // of an earlier process
	add(25, "xl", "other.log", waits("web1", 7, 25))
	add(26, "xl", "xl-boots.log", "Parsing config from web1.cfg")
	if err := os.MkdirAll(filepath.Join(proc, "self"), 0o755); err != nil {
		t.Fatal(err)
	}
	ended := 0
	x := &XL{
		Proc: proc, LogDir: logs, end: func(int) error { ended++; return nil },
		openPID: func(pid int) (int, error) {
			if pid == 12 {
				return 0, unix.ESRCH
			}
			return unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		},
	}
	pids, err := x.End(7)
	slices.Sort(pids)
	if err != nil || !slices.Equal(pids, []int{10, 11, 13}) || ended != 3 {
		t.Errorf("%v, %d ended, %v", pids, ended, err)
	}
}

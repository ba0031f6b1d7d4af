package life

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// XL finds the process that "xl create" left behind for a domain, and asks it to
// end. The process says in its log, /var/log/xen/xl-*.log, which domain it waits
// for ("Waiting for domain NAME (domid N) to die [pid P]", xl_vmcontrol.c); the
// log's name need not be the domain's any more. xl's process knows nothing of a
// domain whose owner is not decided: it would start one that runs on its backup
// already.
type XL struct {
	Proc    string // "/proc"
	LogDir  string // "/var/log/xen"
	end     func(pidfd int) error
	openPID func(pid int) (int, error)
}

// NewXL returns an XL of this host.
func NewXL() *XL {
	return &XL{
		Proc: "/proc", LogDir: "/var/log/xen",
		end:     func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0) },
		openPID: func(pid int) (int, error) { return unix.PidfdOpen(pid, 0) },
	}
}

// End ends the processes that wait for the domain's end, and returns them.
func (x *XL) End(domid uint32) (pids []int, err error) {
	es, err := os.ReadDir(x.Proc)
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !x.waits(pid, domid) {
			continue
		}
		fd, err := x.openPID(pid)
		if err != nil {
			continue // it has ended
		}
		// Between the two the number may have gone to another process.
		if x.waits(pid, domid) {
			if err := x.end(fd); err == nil {
				pids = append(pids, pid)
			}
		}
		unix.Close(fd)
	}
	return pids, nil
}

// waits reports whether a process is xl's own, and waits for the domain.
func (x *XL) waits(pid int, domid uint32) bool {
	dir := filepath.Join(x.Proc, strconv.Itoa(pid))
	if name, err := os.ReadFile(filepath.Join(dir, "comm")); err != nil || strings.TrimSpace(string(name)) != "xl" {
		return false
	}
	out := filepath.Join(dir, "fd", "1")
	log, err := os.Readlink(out)
	if err != nil || !strings.HasPrefix(log, filepath.Join(x.LogDir, "xl-")) {
		return false
	}
	f, err := os.Open(out) // also of a log that was renamed or deleted
	if err != nil {
		return false
	}
	defer f.Close()
	// It waits for one domain after the other, as the domain reboots.
	newest := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "Waiting for domain ") && strings.Contains(lines.Text(), " (domid ") {
			newest = lines.Text()
		}
	}
	return strings.HasSuffix(newest, fmt.Sprintf(" (domid %d) to die [pid %d]", domid, pid))
}

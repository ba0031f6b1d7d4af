package life

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// XL finds the process that "xl create" left behind for a domain, and asks it to
// end. It can be told by its log, /var/log/xen/xl-NAME.log (xl_utils.c,
// do_daemonize). xl's process knows nothing of a domain whose owner is not decided:
// it would start one that runs on its backup already.
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
func (x *XL) End(domain string) (pids []int, err error) {
	es, err := os.ReadDir(x.Proc)
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !x.waits(pid, domain) {
			continue
		}
		fd, err := x.openPID(pid)
		if err != nil {
			continue // it has ended
		}
		// Between the two the number may have gone to another process.
		if x.waits(pid, domain) {
			if err := x.end(fd); err == nil {
				pids = append(pids, pid)
			}
		}
		unix.Close(fd)
	}
	return pids, nil
}

// waits reports whether a process is xl's own for the domain.
func (x *XL) waits(pid int, domain string) bool {
	dir := filepath.Join(x.Proc, strconv.Itoa(pid))
	if name, err := os.ReadFile(filepath.Join(dir, "comm")); err != nil || strings.TrimSpace(string(name)) != "xl" {
		return false
	}
	log, err := os.Readlink(filepath.Join(dir, "fd", "1"))
	if err != nil {
		return false
	}
	// xl moves an older log aside, to ".1" and so on.
	rest, ok := strings.CutPrefix(log, filepath.Join(x.LogDir, "xl-"+domain+".log"))
	if !ok {
		return false
	}
	rest = strings.TrimSuffix(rest, " (deleted)")
	if rest == "" {
		return true
	}
	_, err = strconv.Atoi(strings.TrimPrefix(rest, "."))
	return strings.HasPrefix(rest, ".") && err == nil
}

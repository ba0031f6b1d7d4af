package xen

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Saver returns the process that writes an image of a domain for libxl, to save or to
// migrate it; 0 if there is none. libxl starts "libxl-save-helper --save-domain FD BACK-FD
// DOMID ..." for that (run_helper in its libxl_save_callout.c), before it asks the domain to
// suspend. proc is "/proc".
func Saver(proc string, domid uint32) (pid int) {
	all, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	id := strconv.FormatUint(uint64(domid), 10)
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(line), "\x00")
		if len(args) > 4 && filepath.Base(args[0]) == saveHelper && args[1] == "--save-domain" && args[4] == id {
			pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

const saveHelper = "libxl-save-helper"

// A saverWatch knows without a look at all processes that none saves a domain: the kernel
// tells when the helper's file is opened, as it is before it runs. One goroutine uses it.
type saverWatch struct {
	find func() int // Saver
	fd   int        // inotify's; < 0: there is none, and find is asked each time
	last time.Time  // when a helper was begun, as far as is known
	pid  int        // found at the last look
}

// beginning is longer than a process takes from the open of its file to its command line.
const beginning = 5 * time.Second

func watchSavers(dirs []string, find func() int) *saverWatch {
	w := &saverWatch{find: find, last: time.Now()}
	var err error
	if w.fd, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC); err != nil {
		w.fd = -1
		return w
	}
	watched := false
	for _, dir := range dirs {
		files, _ := filepath.Glob(filepath.Join(dir, saveHelper))
		for _, f := range files {
			if _, err := unix.InotifyAddWatch(w.fd, f, unix.IN_OPEN); err != nil {
				w.close()
				return w
			}
			watched = true
		}
	}
	if !watched {
		w.close()
	}
	return w
}

// saver returns the process that saves the domain, or 0.
func (w *saverWatch) saver() int {
	var buf [4096]byte
	for w.fd >= 0 {
		n, err := unix.Read(w.fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			break
		}
		w.last = time.Now()
	}
	if w.fd < 0 || w.pid != 0 || time.Since(w.last) < beginning {
		w.pid = w.find()
	}
	return w.pid
}

func (w *saverWatch) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
	w.fd = -1
}

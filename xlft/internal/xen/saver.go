package xen

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"xlft/xlft"
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

// Unsaved returns an xlft.ErrSaved while another program saves or migrates the domain.
func Unsaved(domid uint32) error { return savedBy(Saver("/proc", domid)) }

func savedBy(pid int) error {
	if pid == 0 {
		return nil
	}
	return fmt.Errorf("%w (process %d)", xlft.ErrSaved, pid)
}

const saveHelper = "libxl-save-helper"

// A saverWatch knows without a look at all processes that none saves a domain: the kernel
// tells when the helper's file is opened, as it is before it runs. One goroutine uses it.
type saverWatch struct {
	dirs []string
	find func() int // Saver
	fd   int        // inotify's; < 0: there is none, and find is asked each time
	last time.Time  // when a helper was begun, as far as is known
	pid  int        // found at the last look
}

// beginning is longer than a process takes from the open of its file to its command line,
// also in a dom0 that hardly gets on.
const beginning = 30 * time.Second

func watchSavers(dirs []string, find func() int) *saverWatch {
	w := &saverWatch{dirs: dirs, find: find}
	w.watch()
	return w
}

// watch watches the files that are there now.
func (w *saverWatch) watch() {
	w.last = time.Now()
	var err error
	if w.fd, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC); err != nil {
		w.fd = -1
		return
	}
	watched := false
	for _, dir := range w.dirs {
		files, _ := filepath.Glob(filepath.Join(dir, saveHelper))
		for _, f := range files {
			if _, err := unix.InotifyAddWatch(w.fd, f, unix.IN_OPEN|replaced); err != nil {
				w.close()
				return
			}
			watched = true
		}
	}
	if !watched {
		w.close()
	}
}

// replaced are the events of a file that is not that of its name any more, as after an
// upgrade of Xen's tools.
const replaced = unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF

// saver returns the process that saves the domain, or 0.
func (w *saverWatch) saver() int {
	var buf [4096]byte
	anew := false
	for w.fd >= 0 {
		n, err := unix.Read(w.fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			break
		}
		w.last = time.Now()
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			mask := binary.NativeEndian.Uint32(buf[at+4:])
			anew = anew || mask&(replaced|unix.IN_Q_OVERFLOW) != 0
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[at+12:]))
		}
	}
	if anew {
		w.close()
		w.watch()
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

package xen

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Saver returns the process that writes an image of a domain for libxl, to save or to
// migrate it; 0 if there is none. libxl starts "libxl-save-helper --save-domain FD BACK-FD
// DOMID ..." for that (run_helper in its libxl_save_callout.c). proc is "/proc".
func Saver(proc string, domid uint32) (pid int) {
	all, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	id := strconv.FormatUint(uint64(domid), 10)
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(line), "\x00")
		if len(args) > 4 && filepath.Base(args[0]) == "libxl-save-helper" && args[1] == "--save-domain" && args[4] == id {
			pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

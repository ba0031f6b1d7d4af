package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"xlft/tests/lab/probe"
)

// tools is the read-only disk with Debian's programs, if the guest has it. It is a /usr: they find their libraries
// there.
const (
	tools    = "/dev/xvdb"
	toolsDir = "/usr"
)

// A dataDisk is what real programs do with the guest's first disk. Commands on it come one after the other.
type dataDisk struct {
	mu      sync.Mutex
	mounted bool
	tooled  bool // toolsDir is mounted
	db      *sqlite

	fio fio
}

func (d *dataDisk) answer(verb, rest string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.needTools(); err != nil {
		return "", err
	}
	switch verb {
	case "mkfs":
		return "ok", d.mkfs()
	case "mount":
		return "ok", d.mount()
	case "unmount":
		return "ok", d.unmount()
	case "fsck":
		return d.fsck()
	case "commit":
		var n uint64
		if _, err := fmt.Sscan(rest, &n); err != nil {
			return "", fmt.Errorf("commit: %w", err)
		}
		return fmt.Sprint(n), d.commit(n)
	case "rows":
		r, err := d.rows()
		return fmt.Sprint(r.Count, " ", r.Max, " ", r.Sum, " ", r.Total), err
	case "integrity":
		return d.integrity()
	case "journal":
		return d.sql("PRAGMA journal_mode=" + rest + ";")
	case "sql":
		return d.sql(rest + ";")
	}
	return "", fmt.Errorf("no command %q", verb)
}

func (d *dataDisk) answerFio(line string) (string, error) {
	verb, args, _ := strings.Cut(line, " ")
	switch verb {
	case "start":
		d.mu.Lock()
		err := d.needTools()
		d.mu.Unlock()
		if err != nil {
			return "", err
		}
		return "ok", d.fio.start(strings.Fields(args))
	case "status":
		return d.fio.status()
	case "wait":
		return d.fio.wait()
	}
	return "", fmt.Errorf("no command %q", "fio "+verb)
}

// needTools mounts the tools. It is not done at boot: a guest may have another second disk, or none.
func (d *dataDisk) needTools() error {
	if d.tooled {
		return nil
	}
	if err := unix.Mount(tools, toolsDir, "ext4", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("no tools: mount %s at %s: %w", tools, toolsDir, err)
	}
	d.tooled = true
	return nil
}

func (d *dataDisk) mkfs() error {
	if d.mounted {
		return fmt.Errorf("mkfs: %s is mounted", disk)
	}
	if _, err := os.Stat(disk); err != nil {
		return fmt.Errorf("mkfs: %w", err)
	}
	if out, err := exec.Command(toolsDir+"/sbin/mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, lastLine(out))
	}
	return d.mount()
}

func (d *dataDisk) mount() error {
	if d.mounted {
		return fmt.Errorf("mount: %s is mounted", disk)
	}
	// An error that the kernel meets in the file system must not pass unseen.
	if err := unix.Mount(disk, probe.DataDir, "ext4", 0, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount %s at %s: %w", disk, probe.DataDir, err)
	}
	d.mounted = true
	return nil
}

func (d *dataDisk) unmount() error {
	if !d.mounted {
		return fmt.Errorf("unmount: %s is not mounted", disk)
	}
	d.closeDB()
	if err := unix.Unmount(probe.DataDir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", probe.DataDir, err)
	}
	d.mounted = false
	return nil
}

func (d *dataDisk) fsck() (string, error) {
	if d.mounted {
		return "", fmt.Errorf("fsck: %s is mounted", disk)
	}
	out, err := exec.Command(toolsDir+"/sbin/e2fsck", "-f", "-n", disk).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", fmt.Errorf("e2fsck: %w", err)
	}
	status := 0
	if exit != nil {
		status = exit.ExitCode()
	}
	return fmt.Sprint(status, " ", lastLine(out)), nil
}

// lastLine returns the last line that says something.
func lastLine(out []byte) string {
	out = bytes.TrimSpace(out)
	return string(bytes.TrimSpace(out[bytes.LastIndexByte(out, '\n')+1:]))
}

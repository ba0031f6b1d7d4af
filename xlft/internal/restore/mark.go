package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"xlft/xlft/backup"
)

// A replica's lock file says what became of the replica in this boot of the host: the
// host's boot id, the worker's process id, and whether the domain came to run. The last
// is one byte that is changed where it stands, which needs no room.
const (
	bootLength = 36 // of a boot id
	ranAt      = bootLength + 1
	waits      = "-"
	ran        = "r"
)

// boot returns the id of this boot of the host. A test has its own.
var boot = func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	id := strings.TrimSpace(string(b))
	if err == nil && len(id) != bootLength {
		err = fmt.Errorf("the boot id %q has not %d characters", id, bootLength)
	}
	return id, err
}

// markWaiting writes to a locked file that its replica has not run.
func markWaiting(f *os.File) error {
	id, err := boot()
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(id+" "+waits+"\n"), 0)
	return err
}

// markWorker adds who the worker is.
func markWorker(f *os.File, pid int) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(pid)+"\n"), ranAt+2)
	return err
}

// markRan comes before the domain's first step. It takes the file's descriptor: a
// worker's lock must not become a file that is closed when nobody needs it any more.
func markRan(fd int) error {
	_, err := unix.Pwrite(fd, []byte(ran), ranAt)
	return err
}

// markRan is markRan for whoever takes that step in a dead worker's place.
func (r *Restorer) markRan(domain string) error {
	f, err := os.OpenFile(r.lockFile(domain), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return markRan(int(f.Fd()))
}

// marked reads a lock file. Known is false if it is of another boot, or not there.
func (r *Restorer) marked(domain string) (came, known bool, worker int, err error) {
	b, err := os.ReadFile(r.lockFile(domain))
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, 0, nil
	}
	if err != nil {
		return false, false, 0, err
	}
	id, err := boot()
	if err != nil {
		return false, false, 0, err
	}
	text := string(b)
	if len(text) < ranAt+2 || text[:bootLength] != id {
		return false, false, 0, nil
	}
	worker, _ = strconv.Atoi(strings.TrimSpace(text[ranAt+2:]))
	switch text[ranAt : ranAt+1] {
	case ran:
		return true, true, worker, nil
	case waits:
		return false, true, worker, nil
	}
	return false, false, worker, nil
}

// Ran says whether the newest replica of a domain came to run. The file that says it
// does not outlive this boot of the host.
func (r *Restorer) Ran(domain, _ string) (backup.Ran, error) {
	switch came, known, _, err := r.marked(domain); {
	case err != nil:
		return backup.RanUnknown, fmt.Errorf("whether %s ran here: %w", domain, err)
	case came:
		return backup.RanOnce, nil
	case known:
		return backup.RanNot, nil
	}
	return backup.RanUnknown, nil
}

// abandonTimeout is how long a worker that was killed may take to be gone.
const abandonTimeout = 2 * time.Second

// Abandon kills the worker of a domain's replica. The replica is destroyed by whoever
// finds it next.
func (r *Restorer) Abandon(domain string) error {
	_, known, pid, err := r.marked(domain)
	if err != nil || !known || pid <= 0 {
		return fmt.Errorf("the worker of %s is not known: %w", domain, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("the worker of %s: %w", domain, err)
	}
	defer unix.Close(fd)
	// If a worker is alive now the process is that worker: its id was not free since.
	if alive, err := r.working(domain); err != nil || !alive {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("end the worker of %s: %w", domain, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), abandonTimeout)
	defer cancel()
	for {
		alive, err := r.working(domain)
		if err != nil || !alive {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the worker of %s was killed, and is still there", domain)
		}
	}
}

var _ backup.Restorer = (*Restorer)(nil)

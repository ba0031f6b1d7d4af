package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"xlft/xlft/backup"
)

// A replica's lock file says what became of the replica in this boot of the host:
// whether the domain came to run, the host's boot id, the worker's process and the
// receiver's. Whether it ran is the first byte, which is changed where it stands: that
// needs no room.
const (
	waits = "-"
	ran   = "r"
)

// boot returns the id of this boot of the host. A test has its own.
var boot = func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
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
	_, err = f.WriteAt([]byte(waits+" "+id+"\n"), 0)
	return err
}

// markWorker adds which processes work on it: the worker, and this receiver.
func markWorker(f *os.File, pid int) error {
	began, err := beginOf(os.Getpid())
	if err != nil {
		return err
	}
	return noteProcesses(f, pid, os.Getpid(), began)
}

func noteProcesses(f *os.File, worker, receiver int, began string) error {
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	_, err := fmt.Fprintf(f, "%d %d %s\n", worker, receiver, began)
	return err
}

// beginOf returns when a process began, which tells it from a later one of its id; ""
// if there is none.
func beginOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	// The name, which may have spaces, ends at the last ")"; the state is field 3.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const starttime = 22 - 3
	if len(fields) <= starttime {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields[starttime], nil
}

// markRan comes before the domain's first step. It takes the file's descriptor: a
// worker's lock must not become a file that is closed when nobody needs it any more.
func markRan(fd int) error {
	_, err := unix.Pwrite(fd, []byte(ran), 0)
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

// A mark is what a lock file says. It is the zero mark if the file is of another boot,
// or not there.
type mark struct {
	known            bool
	ran              bool
	worker, receiver int    // process ids; 0: not known
	began            string // when that receiver began
}

func (r *Restorer) marked(domain string) (m mark, err error) {
	b, err := os.ReadFile(r.lockFile(domain))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	id, err := boot()
	if err != nil {
		return m, err
	}
	was, processes, whole := strings.Cut(string(b), "\n")
	if !whole || was != ran+" "+id && was != waits+" "+id {
		return m, nil
	}
	m.known, m.ran = true, was[:1] == ran
	fmt.Sscan(processes, &m.worker, &m.receiver, &m.began)
	return m, nil
}

// Ran says whether the newest replica of a domain came to run. The file that says it
// does not outlive this boot of the host.
func (r *Restorer) Ran(domain, _ string) (backup.Ran, error) {
	switch m, err := r.marked(domain); {
	case err != nil:
		return backup.RanUnknown, fmt.Errorf("whether %s ran here: %w", domain, err)
	case m.ran:
		return backup.RanOnce, nil
	case m.known:
		return backup.RanNot, nil
	}
	return backup.RanUnknown, nil
}

// predecessor returns the process of the receiver that made a domain's newest replica, if
// that is another one than this and still there: a process that was killed lasts until
// its writes to a disk have returned. 0: there is none.
func (r *Restorer) predecessor(domain string) (pid int, err error) {
	m, err := r.marked(domain)
	if err != nil || m.began == "" || m.receiver == os.Getpid() {
		return 0, err
	}
	began, err := beginOf(m.receiver)
	if err != nil || began != m.began {
		return 0, err
	}
	return m.receiver, nil
}

// abandonTimeout is how long a worker that was killed may take to be gone.
const abandonTimeout = 2 * time.Second

// Abandon kills the worker of a domain's replica, unless the receiver that made it is
// still there. The replica is destroyed by whoever finds it next.
func (r *Restorer) Abandon(domain string) error {
	m, err := r.marked(domain)
	if err != nil {
		return err
	}
	if m.worker <= 0 || m.began == "" {
		return fmt.Errorf("the worker of %s is not known", domain)
	}
	if pid, err := r.predecessor(domain); err != nil || pid != 0 {
		return errors.Join(err, fmt.Errorf("the receiver that began the takeover of %s, process %d, has not ended: writes to a disk may be under way", domain, pid))
	}
	fd, err := unix.PidfdOpen(m.worker, 0)
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

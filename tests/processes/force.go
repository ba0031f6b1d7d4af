package processes

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// forces are the faults in force. One that is wanted again while it lasts is not
// done a second time, and is undone by the last who wanted it: what it was like
// before is seen by the first alone.
type forces struct {
	mu  sync.Mutex
	all map[string]*inForce
}

type inForce struct {
	wanted int
	set    func(on bool) error // of the first who wanted it
}

// force puts a fault in force. What names what it is done to, a process by its id.
// Set does it and undoes it. Undo may be called more than once.
func (w *World) force(what string, set func(on bool) error) (undo func(), err error) {
	f := &w.forces
	f.mu.Lock()
	defer f.mu.Unlock()
	is := f.all[what]
	if is == nil {
		if err := set(true); err != nil {
			return nil, err
		}
		if f.all == nil {
			f.all = map[string]*inForce{}
		}
		is = &inForce{set: set}
		f.all[what] = is
	}
	is.wanted++
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if is.wanted--; is.wanted == 0 {
			delete(f.all, what)
			if err := is.set(false); err != nil {
				w.say("not undone, %s: %v", what, err)
			}
		}
	}), nil
}

var errNoProcess = errors.New("no process")

// stand makes the present process of a unit stand still.
func (u *unit) stand() (undo func(), err error) {
	pid := u.pid()
	return u.h.w.force(fmt.Sprintf("stop %d", pid), func(on bool) error {
		s := syscall.SIGCONT
		if on {
			s = syscall.SIGSTOP
		}
		if !u.signalTo(pid, s) && on {
			return errNoProcess
		}
		return nil
	})
}

// limit lets the present process of a unit open nothing more.
func (u *unit) limit() (undo func(), err error) {
	pid := u.pid()
	var was unix.Rlimit
	return u.h.w.force(fmt.Sprintf("descriptors %d", pid), func(on bool) error {
		u.mu.Lock() // it has not been waited for: the number is its own
		defer u.mu.Unlock()
		switch {
		case u.cmd == nil || u.cmd.Process.Pid != pid:
			if on {
				return errNoProcess
			}
			return nil
		case !on:
			return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil)
		}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
			return err
		}
		return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}, nil)
	})
}

// Package soundness runs a command of the operator's, again and again, that says whether this
// host is sound: memory that is corrected too often, a fan, a disk of dom0's. A host that is
// not is emptied before it dies.
//
// The one rule a caller must know: only one exit status, [Unsound], says that a host is not
// sound. A command that ends otherwise says nothing, and that is said.
package soundness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"xlft/xlft"
)

// Unsound is the exit status of a command that says that the host is not sound. No script ends
// with it by mistake.
const Unsound = 100

// A Watch runs the command. Its fields are fixed once it runs.
type Watch struct {
	// Plan is what the configuration says now: "" is no command.
	Plan func() (command string, every time.Duration)
	// Empty is called once the command has said that the host is not sound; again after the
	// next answer if it fails.
	Empty func(ctx context.Context) error
	// Emptied reports whether the host is kept empty. If it is not any more, though Note is
	// there, an operator does not want that: nothing is done until the host was sound.
	Emptied func() bool
	// Note is a file that survives this process, and no reboot.
	Note string
	Log  *zap.Logger

	command string
	bad     int  // answers in a row that the host is not sound
	done    bool // Empty succeeded, and the host was not sound since
	said    xlft.Said
}

const (
	// enough is how many answers in a row it takes: emptying a host costs something.
	enough = 2
	// limit bounds one run of the command.
	limit = 30 * time.Second
	// step is the time between two looks at the configuration.
	step = 10 * time.Second
)

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	var last time.Time
	for {
		command, every := w.Plan()
		if command != "" && time.Since(last) >= every {
			w.look(ctx, command)
			last = time.Now()
		}
		wait := step
		if command != "" {
			wait = min(step, max(every-time.Since(last), time.Millisecond))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (w *Watch) look(ctx context.Context, command string) {
	if command != w.command {
		w.command, w.bad = command, 0
	}
	why, sound, err := ask(ctx, command)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		if w.said.New("fails", err.Error()) {
			w.Log.Error("whether this host is sound can't be told (host.health_command)", zap.Error(err))
		}
		return
	case sound:
		if w.bad > 0 {
			w.Log.Info("this host is sound again")
		}
		w.bad, w.done = 0, false
		w.said.Forget("fails")
		w.said.Forget("kept")
		if err := os.Remove(w.Note); err != nil && !errors.Is(err, os.ErrNotExist) && w.said.New("note", err.Error()) {
			w.Log.Error("forget that this host was not sound", zap.Error(err))
		}
		return
	}
	if w.bad++; w.bad < enough || w.done {
		return
	}
	_, err = os.Stat(w.Note)
	switch noted := err == nil; {
	case noted && !w.Emptied():
		if w.said.New("kept", why) {
			w.Log.Warn("this host is not sound, and an operator wants it to be used (ft-undrain)", zap.String("why", why))
		}
		return
	case !noted:
		w.Log.Error("this host is not sound: its domains are moved off, and it takes no copies", zap.String("why", why))
		// Without the note it is done all the same: a host that dies costs more than a word of an operator's
		// that has to be said twice.
		if err := os.WriteFile(w.Note, []byte(why+"\n"), 0o644); err != nil {
			w.Log.Error("note that this host is not sound", zap.Error(err))
		}
	}
	if err := w.Empty(ctx); err != nil {
		if w.said.New("drain", err.Error()) {
			w.Log.Error("this host is not sound, and not everything could be moved off; it is tried again", zap.Error(err))
		}
		return
	}
	w.done = true
}

// head keeps the begin of what is written to it.
type head struct{ b []byte }

const headLen = 4 << 10

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), headLen-len(h.b))]...)
	return len(p), nil
}

// ask runs the command. Why is what it printed.
func ask(ctx context.Context, command string) (why string, sound bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, command)
	var out head
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err = cmd.Start(); err == nil {
		// What it has started ends with it. Until Wait nobody else has its number.
		for unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		err = cmd.Wait()
	}
	why = strings.Join(strings.Fields(strings.ToValidUTF8(string(out.b), "?")), " ")
	var exit *exec.ExitError
	switch {
	case err == nil:
		return why, true, nil
	case ctx.Err() != nil:
		return why, false, fmt.Errorf("%s: no answer within %v", command, limit)
	case errors.As(err, &exit) && exit.ExitCode() == Unsound:
		return why, false, nil
	case why != "":
		return why, false, fmt.Errorf("%s: %w: %s", command, err, why)
	}
	return why, false, fmt.Errorf("%s: %w", command, err)
}

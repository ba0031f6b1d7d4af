// Package soundness runs a command of the operator's, again and again, that says whether this
// host is sound: memory that is corrected too often, a fan, a disk of dom0's. A host that is
// not is emptied before it dies.
//
// The one rule a caller must know: only the exit status 1 says that a host is not sound. A
// command that fails otherwise says nothing, and that is said.
package soundness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
)

// A Watch runs the command. Its fields are fixed once it runs.
type Watch struct {
	// Plan is what the configuration says now: "" is no command.
	Plan func() (command string, every time.Duration)
	// Unsound is called once the command has said that the host is not sound, with what it
	// printed; again after the next answer if it fails.
	Unsound func(ctx context.Context, why string) error
	Log     *zap.Logger

	bad  int  // answers in a row that the host is not sound
	done bool // Unsound succeeded, and the host was not sound since
	said xlft.Said
}

const (
	// enough is how many answers in a row it takes: emptying a host costs something.
	enough = 2
	// limit bounds one run of the command.
	limit = 30 * time.Second
	// idle is the time between two looks whether there is a command.
	idle = 10 * time.Second
)

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	for {
		command, every := w.Plan()
		if command == "" {
			every = idle
		} else {
			w.look(ctx, command)
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return
		}
	}
}

func (w *Watch) look(ctx context.Context, command string) {
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
		return
	}
	if w.bad++; w.bad < enough || w.done {
		return
	}
	if w.bad == enough {
		w.Log.Error("this host is not sound: its domains are moved off, and it takes no copies", zap.String("why", why))
	}
	if err := w.Unsound(ctx, why); err != nil {
		if w.said.New("drain", err.Error()) {
			w.Log.Error("this host is not sound, and not everything could be moved off; it is tried again", zap.Error(err))
		}
		return
	}
	w.done = true
}

// ask runs the command. Why is what it printed.
func ask(ctx context.Context, command string) (why string, sound bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, command)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// What it has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	why = strings.Join(strings.Fields(out.String()), " ")
	why = why[:min(len(why), 1000)]
	var exit *exec.ExitError
	switch {
	case err == nil:
		return why, true, nil
	case ctx.Err() != nil:
		return why, false, fmt.Errorf("%s: no answer within %v", command, limit)
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return why, false, nil
	case why != "":
		return why, false, fmt.Errorf("%s: %w: %s", command, err, why)
	}
	return why, false, fmt.Errorf("%s: %w", command, err)
}

//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"xlft/tests/lab/agent"
)

// A CommandError says how a command on a host failed.
type CommandError struct {
	Host   string
	Args   []string
	Status agent.Status
	Stderr string // its end, if long
}

func (e *CommandError) Error() string {
	var how string
	switch {
	case e.Status.Err != "":
		how = "does not start: " + e.Status.Err
	case e.Status.Signal != "":
		how = "ended by signal: " + e.Status.Signal
	default:
		how = fmt.Sprint("exit status ", e.Status.Code)
	}
	msg := fmt.Sprintf("host %s: %s: %s", e.Host, strings.Join(e.Args, " "), how)
	if text := strings.TrimSpace(e.Stderr); text != "" {
		msg += ": " + tail(text, 20)
	}
	return msg
}

// A Process is a command that runs on a host.
type Process struct {
	host   *Host
	args   []string
	remote *agent.Process

	mu             sync.Mutex
	stdout, stderr bytes.Buffer
}

// Start starts a command on the host. It is killed when ctx ends.
func (h *Host) Start(ctx context.Context, argv ...string) (*Process, error) {
	conn, err := h.dialAgent(ctx)
	if err != nil {
		return nil, fmt.Errorf("host %s: %s: %w", h.name, strings.Join(argv, " "), err)
	}
	p := &Process{host: h, args: argv}
	p.remote, err = agent.Run(conn, agent.Request{Args: argv}, lockedWriter{&p.mu, &p.stdout}, lockedWriter{&p.mu, &p.stderr})
	if err != nil {
		return nil, fmt.Errorf("host %s: %s: %w", h.name, strings.Join(argv, " "), err)
	}
	stopped := context.AfterFunc(ctx, func() { p.remote.Close() })
	go func() {
		<-p.remote.Done()
		stopped()
	}()
	return p, nil
}

// Write feeds the command's standard input.
func (p *Process) Write(b []byte) (int, error) { return p.remote.Write(b) }

// CloseInput ends the command's standard input.
func (p *Process) CloseInput() error { return p.remote.CloseInput() }

// Signal sends sig to the command and its children.
func (p *Process) Signal(sig os.Signal) error { return p.remote.Signal(sig) }

// Kill kills the command and its children.
func (p *Process) Kill() error { return p.remote.Close() }

// Done is closed when the command has ended, or can no longer be reached.
func (p *Process) Done() <-chan struct{} { return p.remote.Done() }

// Stdout returns what the command has printed so far.
func (p *Process) Stdout() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String()
}

// Stderr returns what the command has complained about so far.
func (p *Process) Stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// Wait waits for the command to end. An end that is not exit status 0 is a [*CommandError].
func (p *Process) Wait() error {
	status, err := p.remote.Wait()
	if err != nil {
		return fmt.Errorf("host %s: %s: %w", p.host.name, strings.Join(p.args, " "), err)
	}
	if status != (agent.Status{}) {
		return &CommandError{p.host.name, p.args, status, p.Stderr()}
	}
	return nil
}

// AwaitOutput waits until the command has printed text, on either stream.
func (p *Process) AwaitOutput(ctx context.Context, text string) error {
	return Await(ctx, func() error {
		if strings.Contains(p.Stdout(), text) || strings.Contains(p.Stderr(), text) {
			return nil
		}
		select {
		case <-p.Done():
			return stop(fmt.Errorf("host %s: %s ended without printing %q: %w", p.host.name, p.args[0], text, errors.Join(p.Wait(), io.EOF)))
		default:
			return fmt.Errorf("host %s: %s has not printed %q", p.host.name, p.args[0], text)
		}
	})
}

// Run runs a command on the host and returns what it printed.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	return h.RunInput(ctx, nil, argv...)
}

// RunInput is Run with the command's standard input.
func (h *Host) RunInput(ctx context.Context, input []byte, argv ...string) (string, error) {
	p, err := h.Start(ctx, argv...)
	if err != nil {
		return "", err
	}
	// A command that ends early takes no input. Its exit status counts, which Wait returns.
	if _, err := p.Write(input); err == nil {
		p.CloseInput()
	}
	err = p.Wait()
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return p.Stdout(), err
}

// Must is Run for a command whose failure ends the test.
func (h *Host) Must(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Copy copies a file of this machine to the host.
func (h *Host) Copy(ctx context.Context, local, remote string, mode os.FileMode) error {
	body, err := os.ReadFile(local)
	if err != nil {
		return fmt.Errorf("copy to host %s: %w", h.name, err)
	}
	return h.WriteFile(ctx, remote, body, mode)
}

// WriteFile writes a file on the host, and the directories above it. It replaces the whole file.
func (h *Host) WriteFile(ctx context.Context, path string, body []byte, mode os.FileMode) error {
	const script = `set -e; mkdir -p "$(dirname "$1")"; cat > "$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1"`
	_, err := h.RunInput(ctx, body, "sh", "-c", script, "write", path, strconv.FormatUint(uint64(mode.Perm()), 8))
	return err
}

// ReadFile returns a file of the host.
func (h *Host) ReadFile(ctx context.Context, path string) ([]byte, error) {
	out, err := h.Run(ctx, "cat", path)
	return []byte(out), err
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"xlft/tests/lab/agent"
)

// A lab that one process keeps up can be used by other processes: state says where the lab is.
type state struct {
	PID       int               `json:"pid"`
	Namespace string            `json:"namespace"` // a file for nsenter --net=
	Consoles  map[string]string `json:"consoles"`
}

// stateFile is in the cache, where Publish and Attach both find it.
func stateFile() (string, error) {
	c, err := openCache()
	if err != nil {
		return "", err
	}
	return filepath.Join(c.dir, "up.json"), nil
}

// Publish lets other processes [Attach] to the lab until it is closed. It returns the lab's network namespace as a
// file for nsenter.
func (l *Lab) Publish() (namespace string, err error) {
	s := state{
		PID:       os.Getpid(),
		Namespace: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), l.net.ns.fd),
		Consoles:  map[string]string{},
	}
	for _, h := range l.Hosts() {
		s.Consoles[h.name] = h.Console()
	}
	body, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	name, err := stateFile()
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(name+".new", body, 0o644); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	l.published = name
	return s.Namespace, nil
}

// Attach returns the published lab. It runs commands, copies files, dials, captures and cuts cables there; only the
// process that published the lab starts and kills its hosts.
func Attach() (*Lab, error) {
	name, err := stateFile()
	if err != nil {
		return nil, err
	}
	body, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("lab: none is up: %w", err)
	}
	var s state
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fmt.Errorf("lab: %s: %w", name, err)
	}
	ns, err := openNamespace(s.Namespace)
	if err != nil {
		return nil, fmt.Errorf("lab: none is up any more: %w", err)
	}
	n, err := openNetwork(ns)
	if err != nil {
		ns.close()
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{net: n}
	for _, spec := range hostSpecs[:2] {
		h := &Host{hostSpec: spec, net: n, dir: filepath.Dir(s.Consoles[spec.name]), attached: true}
		if l.A == nil {
			l.A = h
		} else {
			l.B = h
		}
	}
	return l, nil
}

// Stream runs a command with the streams of the caller. A nil input is an empty one.
func (h *Host) Stream(ctx context.Context, in io.Reader, out, errs io.Writer, argv ...string) error {
	conn, err := h.dialAgent(ctx)
	if err != nil {
		return fmt.Errorf("host %s: %w", h.name, err)
	}
	p, err := agent.Run(conn, agent.Request{Args: argv}, out, errs)
	if err != nil {
		return fmt.Errorf("host %s: %w", h.name, err)
	}
	defer context.AfterFunc(ctx, func() { p.Close() })()
	go func() {
		if in != nil {
			io.Copy(p, in) // a command that has ended takes no more
		}
		p.CloseInput()
	}()
	status, err := p.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("host %s: %w", h.name, errors.Join(context.Cause(ctx), err))
	case status != (agent.Status{}):
		return &CommandError{Host: h.name, Args: argv, Status: status}
	}
	return nil
}

// openNamespace returns a namespace that exists.
func openNamespace(path string) (*namespace, error) {
	return startNamespace(func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		defer unix.Close(fd)
		return unix.Setns(fd, unix.CLONE_NEWNET)
	})
}

package protector

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"xlft/xlft/internal/control"
	"xlft/xlft/wire"
)

// hungAfter is how long the protector of a domain may take to answer its own host, once
// its backup has found it silent.
const hungAfter = 2 * time.Second

// EndHung ends the protector of a domain if it does not answer on its own host either:
// it was stopped, or hangs. systemd starts its successor, which finds out who owns the
// domain. Ended is its process; 0 if it was left alone.
func EndHung(ctx context.Context, runDir, domain string) (ended int, err error) {
	ask, cancel := wire.AwakeTimeout(ctx, hungAfter)
	_, err = NewClient(runDir, domain).Status(ask)
	slept := cancel()
	switch {
	case err == nil, errors.Is(err, control.ErrDown), ctx.Err() != nil:
		return 0, nil
	case ask.Err() == nil, slept > hungAfter/2:
		return 0, nil // it answered something; or this process stood still itself
	}
	p, err := listens(control.Socket(runDir, domain))
	if err != nil {
		return 0, fmt.Errorf("the protector of %s does not answer, and its process is not known: %w", domain, err)
	}
	defer p.Release()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return 0, fmt.Errorf("end the protector of %s, which does not answer: %w", domain, err)
	}
	return p.Pid, nil
}

// listens returns the process that listens on a socket, if that is this program. It
// is held (by a pidfd) before it is looked at: should it end meanwhile, no other that has its
// number is meant.
func listens(socket string) (p *os.Process, err error) {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return p, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return nil, errors.Join(cerr, err)
	}
	if p, err = os.FindProcess(int(cred.Pid)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Release()
			p = nil
		}
	}()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return p, err
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cred.Pid))
	if err != nil {
		return p, err
	}
	// An upgrade may have put another file in its place.
	if base := func(p string) string { return filepath.Base(strings.TrimSuffix(p, " (deleted)")) }; base(exe) != base(self) || int(cred.Pid) == os.Getpid() {
		return p, fmt.Errorf("process %d, %s, is no protector", cred.Pid, exe)
	}
	return p, nil
}

//go:build linux

package lab

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// A namespace is a network namespace without a name: it lives as long as this process or a child in it does, so
// there is nothing to clean up after a crash. One thread stays in it; that thread is the parent of what do starts.
type namespace struct {
	fd   int
	jobs chan func()
	over chan struct{} // closed by close
	once sync.Once
}

var errClosed = errors.New("network namespace is closed")

func newNamespace() (*namespace, error) {
	return startNamespace(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
}

// startNamespace starts the thread, which enters the namespace by move.
func startNamespace(move func() error) (*namespace, error) {
	ns := &namespace{jobs: make(chan func()), over: make(chan struct{})}
	ready := make(chan error)
	go ns.run(move, ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return ns, nil
}

func (ns *namespace) run(move func() error, ready chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
	if err := move(); err != nil {
		ready <- err
		return
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		ready <- err
		return
	}
	ns.fd = fd
	ready <- nil
	for {
		select {
		case job := <-ns.jobs:
			job()
		case <-ns.over:
			return
		}
	}
}

// do runs f on the namespace's thread. Children that f starts belong to that thread, so a parent-death signal comes
// when the namespace is closed or this process ends, and not when some other thread does. f must not block for long.
func (ns *namespace) do(f func() error) error {
	done := make(chan error, 1)
	select {
	case ns.jobs <- func() { done <- f() }:
		return <-done
	case <-ns.over:
		return errClosed
	}
}

// enter runs f, which may block, on a thread of its own in the namespace.
func (ns *namespace) enter(f func()) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread can't be used again: it ends with this goroutine
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		f()
		done <- nil
	}()
	return <-done
}

func (ns *namespace) close() {
	ns.once.Do(func() {
		close(ns.over)
		unix.Close(ns.fd)
	})
}

//go:build !linux

package nbd

import "errors"

var errNeedsLinux = errors.New("nbd: kernel devices need Linux")

// Attach fails: the kernel's NBD client exists on Linux only.
func (s *Server) Attach(name string) (*KernelDevice, error) { return nil, errNeedsLinux }

// Reattach fails: the kernel's NBD client exists on Linux only.
func (s *Server) Reattach(name string, index int) (*KernelDevice, error) {
	return nil, errNeedsLinux
}

// Disconnect fails: the kernel's NBD client exists on Linux only.
func Disconnect(index int) error { return errNeedsLinux }

// Detach fails: the kernel's NBD client exists on Linux only.
func (k *KernelDevice) Detach() error { return errNeedsLinux }

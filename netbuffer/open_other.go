//go:build !linux

package netbuffer

import (
	"context"
	"fmt"
)

// errNotLinux is what everything that needs the kernel returns. New, Adopt and
// the packages that use them build and are tested anywhere.
var errNotLinux = fmt.Errorf("netbuffer: the gate needs Linux: %w", ErrUnsupported)

// Open builds or adopts the gate of a domain, on Linux.
func Open(domid uint32, opts Options) (*Gate, error) { return nil, errNotLinux }

// Inspect returns why Open would refuse the vifs of a domain, on Linux.
func Inspect(domid uint32, opts Options) error { return errNotLinux }

// Check tries whether the kernel has what a gate needs, on Linux.
func Check(ctx context.Context) error { return errNotLinux }

// Stale returns the domains that have gates, on Linux.
func Stale() ([]uint32, error) { return nil, errNotLinux }

// Cleanup removes the gate that an earlier process left, on Linux.
func Cleanup(domid uint32, opts Options, drop bool) error { return errNotLinux }

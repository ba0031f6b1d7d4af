package nbd

import (
	"errors"
	"fmt"
)

// ErrNoKernelNBD says that this host's kernel has no network block devices.
var ErrNoKernelNBD = errors.New("no network block devices in this kernel: the nbd module is not loaded")

// A KernelDevice is an export as /dev/nbdN of this host.
type KernelDevice struct {
	Index int        // N
	done  chan error // the result of the server's side of the connection
}

// Path returns the name of the device's node.
func (k *KernelDevice) Path() string { return DevicePath(k.Index) }

// DevicePath returns the name of the node of a device.
func DevicePath(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

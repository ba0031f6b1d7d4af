//go:build !linux

package netbuffer

import "time"

// nanosleep is Options.Nap's default.
func nanosleep(d time.Duration) { time.Sleep(d) }

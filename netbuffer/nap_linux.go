package netbuffer

import (
	"time"

	"golang.org/x/sys/unix"
)

// nanosleep is Options.Nap's default. In an otherwise idle process time.Sleep
// rounds up to a millisecond, and the domain is suspended meanwhile.
func nanosleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}

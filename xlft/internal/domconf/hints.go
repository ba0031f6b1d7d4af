package domconf

import (
	"fmt"
	"slices"
	"strings"
)

// Hints returns what would make the domain's checkpoints cheaper on a host with so many
// processors; 0: not known. What it rests on is in docs/performance.md.
func (c *Config) Hints(processors int) (hints []string) {
	if n := c.Build.MaxVCPUs; processors > 0 && n > processors {
		hints = append(hints, fmt.Sprintf("it has %d vCPUs, and this host %d processors: each checkpoint stops and starts all of them, one after the other", n, processors))
	}
	words := strings.Fields(c.Build.Cmdline)
	if len(words) == 0 {
		return hints // it boots by itself: what its kernel was told is not known
	}
	for _, w := range []string{"ignore_loglevel", "debug", "loglevel=7", "loglevel=8"} {
		if slices.Contains(words, w) {
			hints = append(hints, fmt.Sprintf("its kernel logs each step of each checkpoint to its console (%s): that can double the pause", w))
			break
		}
	}
	if !slices.Contains(words, "nohz=off") {
		hints = append(hints, "if it is idle most of the time, and its answers are to come soon: a Linux suspends faster then with nohz=off on its command line")
	}
	return hints
}

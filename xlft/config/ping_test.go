package config_test

import (
	"strings"
	"testing"

	"xlft/xlft/config"
)

// A peer that is dead answers no ping: a rule that needs its answer lets nobody take over.
func TestPingNamesNoPeer(t *testing.T) {
	if _, err := config.Parse("x.toml", strings.NewReader(strings.Replace(minimal, "= true", "= true\nping = [\"192.0.2.2\"]", 1))); err == nil {
		t.Error("arbiter.ping names peer beta's own address, and is taken: nobody takes over from it, ever")
	}
}

package preflight

import (
	"testing"
	"time"

	"xlft/xlft/config"
)

// Suspicion comes before the shot, with time to ask.
func TestPatience(t *testing.T) {
	for _, c := range []struct {
		arbiter        string
		silence, after time.Duration
		ok             bool
	}{
		{"fence", time.Second, 3 * time.Second, true},
		{"fence", 3 * time.Second, 3 * time.Second, true},
		{"fence", 4 * time.Second, 3 * time.Second, false},
		{"none", 4 * time.Second, 3 * time.Second, true},
	} {
		conf := &config.Config{Arbiter: config.Arbiter{Type: c.arbiter, FenceAfter: c.after}, Default: config.Domain{FailureTimeout: c.silence}}
		if p, ok := patience(conf, "web1"); ok != c.ok || (p.What == "") != ok || (p.Advice == "") != ok {
			t.Errorf("%+v: %v, %+v", c, ok, p)
		}
	}
}

package arbiter

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/xlft/config"
)

// Every kind that a configuration may have is made, is called what it is there, and keeps
// the contract in a test.
func TestNew(t *testing.T) {
	for _, name := range config.ArbiterTypes {
		c := &config.Config{Name: "alpha", Default: config.Domain{FailureTimeout: time.Second}, Arbiter: config.Arbiter{Type: name, Etcd: new(config.Etcd), File: new(config.File)}}
		a := New(c, "test", nil, zap.NewNop())
		if kind, _, _ := strings.Cut(a.String(), " "); kind != name {
			t.Errorf("%s is called %q", name, a)
		}
		if l, ok := a.(*Ledger); ok && (l.Host != "alpha" || l.Timeout != 2*time.Second || l.HeadStart != time.Second) {
			t.Errorf("%s: %q asks for %v, a backup for %v more", name, l.Host, l.Timeout, l.HeadStart)
		}
		if name != "none" && !slices.ContainsFunc(kinds, func(k kind) bool { return k.name == name }) {
			t.Errorf("%s has no row in the contract", name)
		}
	}
}

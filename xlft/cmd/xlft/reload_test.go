package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

type namedArbiter string

func (a namedArbiter) Claim(context.Context, xlft.Claim) (bool, error) { return a == "yes", nil }
func (a namedArbiter) String() string                                  { return string(a) }

// A reload takes new peers and a new arbiter, forgets peers that are gone, and takes
// nothing of a configuration that is wrong or needs a restart.
func TestReload(t *testing.T) {
	alpha, beta, gamma := wire.Fingerprint{1}, wire.Fingerprint{2}, wire.Fingerprint{3}
	conf := func(host string, peers map[string]wire.Fingerprint) *config.Config {
		c := &config.Config{Name: host, Peers: map[string]config.Peer{}}
		for n, f := range peers {
			c.Peers[n] = config.Peer{Name: n, Fingerprint: f}
		}
		return c
	}
	l := newLive(conf("here", map[string]wire.Fingerprint{"alpha": alpha, "beta": beta}), zap.NewNop())
	verdict := namedArbiter("no")
	l.arbiterOf = func(*config.Config) xlft.Arbiter { return verdict }
	l.take(l.config())
	r := &backup.Receiver{Log: zap.NewNop()}
	won := func() bool { w, _ := l.Claim(t.Context(), xlft.Claim{}); return w }
	same := func(why string) {
		t.Helper()
		if l.peer(alpha) != "alpha" || l.peer(beta) != "beta" || won() {
			t.Errorf("%s: the configuration was taken", why)
		}
	}
	verdict = "yes"
	l.reload(t.Context(), func() (*config.Config, error) { return nil, errors.New("bad") }, r)
	same("can't be read")
	l.reload(t.Context(), func() (*config.Config, error) { return conf("elsewhere", nil), nil }, r)
	same("another host name")
	if err := reloadable(conf("a", nil), conf("b", nil)); err == nil || !strings.Contains(err.Error(), "host.name") {
		t.Errorf("%v", err)
	}
	l.reload(t.Context(), func() (*config.Config, error) {
		return conf("here", map[string]wire.Fingerprint{"alpha": gamma, "delta": beta}), nil
	}, r)
	if l.peer(alpha) != "" || l.peer(gamma) != "alpha" || l.peer(beta) != "delta" || !won() {
		t.Errorf("not taken: %q %q %q", l.peer(alpha), l.peer(gamma), l.peer(beta))
	}
}

package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

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
	l.reload(t.Context(), func() (*config.Config, error) {
		return conf("here", map[string]wire.Fingerprint{"alpha": gamma, "delta": beta}), nil
	}, r)
	if l.peer(alpha) != "" || l.peer(gamma) != "alpha" || l.peer(beta) != "delta" || !won() {
		t.Errorf("not taken: %q %q %q", l.peer(alpha), l.peer(gamma), l.peer(beta))
	}
}

// What only a restart changes is refused by name, or named as what stays; all else is
// taken.
func TestReloadable(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*config.Config)
		refuse string
		stays  bool
	}{
		"nothing":           {change: func(*config.Config) {}},
		"name":              {change: func(c *config.Config) { c.Name = "b" }, refuse: "host.name"},
		"identity":          {change: func(c *config.Config) { c.Identity = "b" }, refuse: "host.identity"},
		"state directory":   {change: func(c *config.Config) { c.StateDir = "b" }, refuse: "host.state_dir"},
		"run directory":     {change: func(c *config.Config) { c.RunDir = "b" }, refuse: "host.run_dir"},
		"address":           {change: func(c *config.Config) { c.Listen = "b" }, refuse: "receive.listen"},
		"page cache":        {change: func(c *config.Config) { c.PageCache = 1 }, refuse: "receive.page_cache"},
		"checkpoint memory": {change: func(c *config.Config) { c.CheckpointMemory = 1 }, refuse: "receive.checkpoint_memory"},
		"arbiter":           {change: func(c *config.Config) { c.Arbiter.Type = "fence" }, refuse: "arbiter.type"},
		"prefix": {change: func(c *config.Config) {
			c.Arbiter = config.Arbiter{Type: "etcd", Etcd: &config.Etcd{Prefix: "/b"}}
		}, refuse: "arbiter.etcd.prefix"},
		"directory": {change: func(c *config.Config) {
			c.Arbiter = config.Arbiter{Type: "file", File: &config.File{Directory: "/b"}}
		}, refuse: "arbiter.file.directory"},
		"retry delay": {change: func(c *config.Config) { c.Default.RetryDelay = time.Minute }, stays: true},
		"epochs":      {change: func(c *config.Config) { c.Default.EpochMax = time.Minute }},
	} {
		t.Run(name, func(t *testing.T) {
			was := config.Config{Name: "a", Arbiter: config.Arbiter{Etcd: &config.Etcd{Prefix: "/a"}, File: &config.File{Directory: "/a"}}, Peers: map[string]config.Peer{}, Default: config.Domain{RetryDelay: time.Second}}
			is := was
			c.change(&is)
			if err := reloadable(&was, &is); (err != nil) != (c.refuse != "") || err != nil && !strings.Contains(err.Error(), c.refuse) {
				t.Errorf("%v", err)
			}
			core, logs := observer.New(zapcore.WarnLevel)
			l := newLive(&was, zap.New(core))
			for range 2 { // it is said again at the next reload
				l.reload(t.Context(), func() (*config.Config, error) { return &is, nil }, &backup.Receiver{Log: zap.NewNop()})
			}
			if took := l.config() == &is; took != (c.refuse == "") {
				t.Errorf("taken: %v", took)
			}
			if said := logs.FilterMessageSnippet("default.retry_delay stays").Len(); said != map[bool]int{true: 2}[c.stays] {
				t.Errorf("said %d times what stays", said)
			}
		})
	}
}

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/wire"
)

// live is what a receiver takes from its configuration, as it was last read. It is
// the receiver's arbiter.
type live struct {
	log       *zap.Logger
	arbiterOf func(*config.Config) xlft.Arbiter
	now       atomic.Pointer[settings]
	begun     *config.Config // what the receiver was started with
}

type settings struct {
	config  *config.Config
	names   map[wire.Fingerprint]string
	arbiter xlft.Arbiter
}

func newLive(c *config.Config, log *zap.Logger) *live {
	l := &live{log: log, begun: c, arbiterOf: func(*config.Config) xlft.Arbiter { return nil }}
	l.take(c)
	return l
}

func (l *live) take(c *config.Config) {
	s := &settings{config: c, names: map[wire.Fingerprint]string{}, arbiter: l.arbiterOf(c)}
	if was := l.now.Load(); was != nil {
		if a, ok := s.arbiter.(*arbiter.Ledger); ok {
			a.Succeed(was.arbiter)
		}
	}
	for _, p := range c.Peers {
		s.names[p.Fingerprint] = p.Name
	}
	l.now.Store(s)
}

func (l *live) config() *config.Config { return l.now.Load().config }

// peer returns the name of the peer with a certificate; "" if there is none.
func (l *live) peer(f wire.Fingerprint) string { return l.now.Load().names[f] }

// reload takes a configuration that was changed. If it is wrong, or differs in what
// needs a restart, everything stays as it was. A changed retry delay alone does not hold
// the rest up: it is named.
func (l *live) reload(ctx context.Context, read func() (*config.Config, error), r *backup.Receiver) {
	was := l.config()
	c, err := read()
	if err == nil {
		err = reloadable(was, c)
	}
	if err != nil {
		l.log.Error("the changed configuration is not taken", zap.Error(err))
		return
	}
	l.take(c)
	var gone []string
	for name, p := range was.Peers {
		if l.peer(p.Fingerprint) != name {
			gone = append(gone, name)
		}
	}
	l.log.Info("configuration taken", zap.Strings("peers_revoked", gone))
	if was, is := l.begun.Default.RetryDelay, c.Default.RetryDelay; was != is {
		l.log.Warn("default.retry_delay stays what it was until \"systemctl restart xlft-receiver\", which ends the copies here; the rest is taken",
			zap.Duration("is", was), zap.Duration("configured", is))
	}
	r.Revoke(ctx, gone...)
}

// reloadable says what only a restart can change.
func reloadable(was, is *config.Config) error {
	var fixed []string
	for _, s := range []struct {
		name    string
		changed bool
	}{
		{"host.name", was.Name != is.Name},
		{"host.identity", was.Identity != is.Identity},
		{"host.state_dir", was.StateDir != is.StateDir},
		{"host.run_dir", was.RunDir != is.RunDir},
		{"receive.listen", was.Listen != is.Listen},
		{"receive.checkpoint_memory", was.CheckpointMemory != is.CheckpointMemory},
		{"receive.page_cache", was.PageCache != is.PageCache},
		{"arbiter.type", was.Arbiter.Type != is.Arbiter.Type},
		{"arbiter.etcd.prefix", is.Arbiter.Type == "etcd" && was.Arbiter.Etcd != nil && was.Arbiter.Etcd.Prefix != is.Arbiter.Etcd.Prefix},
		{"arbiter.file.directory", is.Arbiter.Type == "file" && was.Arbiter.File != nil && was.Arbiter.File.Directory != is.Arbiter.File.Directory},
	} {
		if s.changed {
			fixed = append(fixed, s.name)
		}
	}
	if len(fixed) == 0 {
		return nil
	}
	return fmt.Errorf("%s can't change while copies are here: end the protections with \"xl ft-stop\" on their primaries, then \"systemctl restart xlft-receiver\"", strings.Join(fixed, ", "))
}

func (l *live) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	return l.now.Load().arbiter.Claim(ctx, c)
}

func (l *live) String() string { return l.now.Load().arbiter.String() }

// Check says why the arbiter could not decide now.
func (l *live) Check(ctx context.Context, peer string) error {
	if a, ok := l.now.Load().arbiter.(xlft.ArbiterChecker); ok {
		return a.Check(ctx, peer)
	}
	return nil
}

// Identity says which arbiter of its kind it is.
func (l *live) Identity(ctx context.Context) (string, error) {
	if a, ok := l.now.Load().arbiter.(xlft.ArbiterIdentifier); ok {
		return a.Identity(ctx)
	}
	return "", nil
}

var (
	_ xlft.ArbiterChecker    = (*live)(nil)
	_ xlft.ArbiterIdentifier = (*live)(nil)
)

// health returns what says whether the arbiter could decide against a peer, whose host
// is asked all the time from the first question about it on, until ctx ends.
func (l *live) health(ctx context.Context, dir string) func(peer string) xlft.Health {
	var mu sync.Mutex
	all := map[string]*arbiter.Health{}
	return func(peer string) xlft.Health {
		s := l.now.Load()
		_, configured := s.config.Peers[peer]
		_, checks := s.arbiter.(xlft.ArbiterChecker)
		if !configured || !checks || s.config.Arbiter.CheckInterval == 0 {
			return xlft.Health{}
		}
		mu.Lock()
		defer mu.Unlock()
		h := all[peer]
		if h == nil {
			h = &arbiter.Health{Arbiter: l, Peer: peer, Dir: dir, Every: s.config.Arbiter.CheckInterval, Log: l.log}
			all[peer] = h
			go h.Run(ctx)
		}
		return h.Now()
	}
}

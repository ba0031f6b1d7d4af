// Package paths watches the ways to the other hosts: each address of a peer that has
// several is called all the time, so that a broken one is known before it is needed.
//
// The one rule a caller must know: a broken path is a warning. It says nothing about the
// host behind it.
package paths

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A Path is one address of a peer.
type Path struct {
	Peer    string    `json:"peer"`
	Address string    `json:"address"` // host:port
	Up      bool      `json:"up"`
	Since   time.Time `json:"since"`           // that it is up, or is not
	Error   string    `json:"error,omitempty"` // of the newest call, if it is not up
}

// A Monitor calls the peers. Its fields are fixed once it runs.
type Monitor struct {
	Config   func() *config.Config
	Dial     func(p config.Peer, address string) wire.Dialer
	Software string
	Log      *zap.Logger

	mu    sync.Mutex
	paths map[key]*state
}

type key struct{ peer, address string }

type state struct {
	Path
	failures int // in a row
}

const (
	every = 5 * time.Second // between two calls by a path
	limit = 4 * time.Second // of one call
	// patience is how many calls in a row have to fail: one that is lost says little.
	patience = 2
)

// Run calls the peers until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		m.look(ctx)
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// look calls every path once.
func (m *Monitor) look(ctx context.Context) {
	conf := m.Config()
	var all sync.WaitGroup
	configured := map[key]bool{}
	for _, p := range conf.Peers {
		if len(p.Addresses) < 2 {
			continue // a peer that is not reached is no news of a path
		}
		for _, a := range p.Addresses {
			configured[key{p.Name, a}] = true
			all.Go(func() { m.call(ctx, p, a) })
		}
	}
	all.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.paths {
		if !configured[k] {
			delete(m.paths, k)
		}
	}
}

// call greets a peer by a path, and hangs up.
func (m *Monitor) call(ctx context.Context, p config.Peer, address string) {
	call, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, _, err := wire.Open(call, m.Dial(p, address), wire.KindQuery, "", m.Software)
	if err == nil {
		c.Close()
	}
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paths == nil {
		m.paths = map[key]*state{}
	}
	k := key{p.Name, address}
	s := m.paths[k]
	if s == nil {
		s = &state{Path: Path{Peer: p.Name, Address: address, Up: true, Since: time.Now()}}
		m.paths[k] = s
	}
	log := m.Log.With(zap.String("peer", p.Name), zap.String("address", address))
	if err == nil {
		if s.failures, s.Error = 0, ""; !s.Up {
			log.Info("a path to a peer is whole again", zap.Duration("was_broken", time.Since(s.Since)))
			s.Up, s.Since = true, time.Now()
		}
		return
	}
	s.failures++
	if s.failures < patience {
		return
	}
	if s.Error = err.Error(); s.Up {
		log.Warn("a path to a peer is broken", zap.Error(err))
		s.Up, s.Since = false, time.Now()
	}
}

// Paths returns what was found, by peer, in the order of its addresses in the
// configuration.
func (m *Monitor) Paths() []Path {
	conf := m.Config()
	m.mu.Lock()
	defer m.mu.Unlock()
	all := []Path{}
	for _, s := range m.paths {
		all = append(all, s.Path)
	}
	place := func(p Path) int { return slices.Index(conf.Peers[p.Peer].Addresses, p.Address) }
	slices.SortFunc(all, func(a, b Path) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(place(a), place(b)))
	})
	return all
}

package protector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/life"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
)

// protected is what a protector knows of its domain after the session.
type protected struct {
	Domain xen.Domain
	Config *domconf.Config
	Proven bool // it was protected
	again  bool // it ended by itself
}

const (
	// rebirthMost is how long a domain that is to be started again may take to, if
	// nobody is seen starting it.
	rebirthMost = 5 * time.Minute
	// startMost is how long it may take if its keeper has begun: a dump of its
	// memory is a part of that.
	startMost = time.Hour
)

// Again waits, after Run, for a domain that ended by itself to be started again,
// and reports whether it was. It says false at once where that is not to be
// expected. Alive is called about once a second meanwhile. The wait is over when
// the next session begins, or with DontWait.
func (p *Protector) Again(ctx context.Context, alive func()) bool {
	if p.run == nil || !p.run.again {
		return false
	}
	// The file keeps a successor waiting if this process dies meanwhile.
	if b, err := json.Marshal(p.run); err == nil {
		err = os.WriteFile(waitFile(p.Config.RunDir, p.Domain), b, 0o600)
		if err != nil {
			p.Log.Warn("note that the domain is waited for", zap.Error(err))
		}
	}
	h := &opening{open: func() (looker, func(), error) {
		h, err := xen.Open()
		if err != nil {
			return nil, nil, err
		}
		return h, h.Close, nil
	}}
	defer h.end()
	return p.restarted(ctx, h, alive)
}

// looker is what a wait for a domain looks at.
type looker interface {
	Domains() ([]xen.Domain, error)
	End(domid uint32) (st xlft.GuestState, gone bool, reason string, err error)
}

// opening is a host that is opened by the first look that can: dom0 may be short of
// memory or of descriptors just when the wait begins.
type opening struct {
	open  func() (_ looker, end func(), _ error)
	h     looker
	ended func()
}

func (o *opening) host() (looker, error) {
	if o.h == nil {
		h, end, err := o.open()
		if err != nil {
			return nil, err
		}
		o.h, o.ended = h, end
	}
	return o.h, nil
}

func (o *opening) Domains() ([]xen.Domain, error) {
	h, err := o.host()
	if err != nil {
		return nil, err
	}
	return h.Domains()
}

func (o *opening) End(domid uint32) (xlft.GuestState, bool, string, error) {
	h, err := o.host()
	if err != nil {
		return 0, false, "", err
	}
	return h.End(domid)
}

func (o *opening) end() {
	if o.ended != nil {
		o.ended()
	}
}

// Waited takes up the wait of a protector that died while it waited in Again, and
// reports whether there was one.
func (p *Protector) Waited() bool {
	b, err := os.ReadFile(waitFile(p.Config.RunDir, p.Domain))
	if err != nil {
		return false
	}
	r := &protected{again: true}
	if err := json.Unmarshal(b, r); err != nil || r.Config == nil {
		return false
	}
	p.run = r
	return true
}

// DontWait ends a wait for a domain: no later protector takes it up.
func DontWait(runDir, domain string) { os.Remove(waitFile(runDir, domain)) }

func waitFile(runDir, domain string) string {
	return filepath.Join(runDir, xlft.FileName(domain)+".again")
}

func (p *Protector) restarted(ctx context.Context, h looker, alive func()) bool {
	r := p.run
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begun, first := time.Now(), time.Now()
	var gone time.Time
	for time.Since(begun) < rebirthMost && time.Since(first) < startMost {
		now, running := r.look(h, p.Domain)
		switch {
		case Starting(p.Config.RunDir, p.Domain):
			begun, gone = time.Now(), time.Time{}
		case running:
			p.Proven = r.Proven
			return true
		case now == stays:
			return false
		case now != isGone:
			gone = time.Time{}
		case gone.IsZero():
			gone = time.Now()
		case time.Since(gone) > life.Rebirth:
			return false
		}
		alive()
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return false
}

// fate is what is to be expected of a domain that has ended.
type fate int

const (
	isGone    fate = iota
	comesBack      // its configuration has it started again
	stays          // its configuration has it ended
)

// look reports what is to be expected of the domain, and whether it runs.
func (r *protected) look(h looker, name string) (fate, bool) {
	if all, err := h.Domains(); err == nil {
		for _, d := range all {
			if d.UUID == r.Domain.UUID && d.Name == name && d.ID != r.Domain.ID {
				return comesBack, true
			}
		}
	}
	st, gone, reason, err := h.End(r.Domain.ID)
	switch {
	case err != nil:
		return comesBack, false // the next look will tell
	case gone:
		return isGone, false
	case st == xlft.GuestRuns: // after a soft reset
		return comesBack, true
	case st == xlft.GuestOver && !r.Config.Action(reason).Again():
		return stays, false
	}
	return comesBack, false
}

// RestartFile has the configuration of a domain that is being started again.
func RestartFile(runDir, domain string) string {
	return filepath.Join(runDir, xlft.FileName(domain)+restartSuffix)
}

const restartSuffix = ".restart"

// Starting reports whether a domain is being started again.
func Starting(runDir, domain string) bool {
	_, err := os.Stat(RestartFile(runDir, domain))
	return err == nil
}

// Waits reports whether a protector waits for its domain to be started again, or
// for that to be complete enough for a session.
func Waits(runDir, domain string) bool {
	_, err := os.Stat(waitFile(runDir, domain))
	return err == nil
}

// Restarting lists the domains that are being started again.
func Restarting(runDir string) (domains []string, err error) {
	es, err := os.ReadDir(runDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range es {
		if file, ok := strings.CutSuffix(e.Name(), restartSuffix); ok {
			if n, ok := xlft.NameOf(file); ok {
				domains = append(domains, n)
			}
		}
	}
	return domains, nil
}

// Owned makes sure that this host owns the domain, and that no protector changes
// that until release is called. The error says what is not decided.
func Owned(c *config.Config, domain string) (release func(), err error) {
	l, err := lock(c.RunDir, domain)
	if errors.Is(err, ErrAlready) {
		return nil, errors.New("its protector has not ended yet")
	}
	if err != nil {
		return nil, err
	}
	o, err := store.Dir(c.StateDir).Load(domain)
	switch {
	case err != nil:
	case o.Role == xlft.HostBackup || o.Role == xlft.HostYielded || o.Role == xlft.HostFailed:
		err = fmt.Errorf("%w: this host is %s, of %s", life.ErrElsewhere, o.Role, o.Peer)
	case Left(c, domain):
		err = fmt.Errorf("its protector has died, and %s may run the domain: \"systemctl start xlft@%s\"", o.Peer, domain)
	case o.Role == xlft.HostOwner && o.Pending:
		err = errors.New("the receiver has not recorded yet that the domain runs here")
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return func() { l.Close() }, nil
}

// Package life does for a domain what the process does that "xl create" leaves
// behind: when the domain powers off, reboots or crashes, it carries out what the
// domain's configuration says (on_poweroff, on_reboot, on_watchdog, on_crash,
// on_soft_reset; see xl.cfg(5)).
//
// The one rule a caller must know: a domain whose owner is not decided is not
// touched. Decide answers that, for each step anew.
package life

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/xen"
)

// Host is what a Keeper needs of *xen.Host.
type Host interface {
	Domains() ([]xen.Domain, error)
	End(domid uint32) (st xlft.GuestState, gone bool, reason string, err error)
	Config(domid uint32) (json.RawMessage, error)
	Destroy(domid uint32) error
	Create(config json.RawMessage) (domid uint32, err error)
	CoreDump(domid uint32, file string) error
	Preserve(domid uint32, config json.RawMessage, suffix string) error
	SoftReset(domid uint32, config json.RawMessage) error
}

// A Keeper keeps one domain's life.
type Keeper struct {
	Host   Host
	Domain string
	// Decide says whether this host owns the domain, and makes sure that nothing
	// changes that until release is called. The error says what is not decided.
	Decide func() (release func(), err error)
	// Restarting is a file that has the configuration of a domain that was
	// destroyed to be created again. A Keeper that finds it goes on with that.
	Restarting string
	// DumpDir is where a domain's memory goes for coredump-*.
	DumpDir string
	// Alone, if set, makes sure that no xl waits for the end of the domain too.
	Alone func()
	// Say, if set, is told what the Keeper does.
	Say func(format string, args ...any)
	Log *zap.Logger

	said xlft.Said
}

const (
	poll = time.Second
	// grace is what somebody else who waits for the domain's end gets to act on
	// it: an "xl create -F", libvirt. xl takes two seconds between the end of a
	// domain and its next start.
	grace = 3 * time.Second
	// Rebirth is how long a domain that was destroyed by somebody else may take to
	// come back as the same one, by its UUID.
	Rebirth = 20 * time.Second
	// Waits between two attempts to create a domain.
	firstWait   = time.Second
	longestWait = 30 * time.Second
)

// Run keeps the domain until it is gone for good, which is no error.
func (k *Keeper) Run(ctx context.Context) error {
	d, err := k.find(func(d xen.Domain) bool { return d.Name == k.Domain })
	for err == nil {
		if d, err = k.resume(ctx, d); d == nil || err != nil {
			break
		}
		if k.Alone != nil {
			k.Alone()
		}
		k.say("Domain %d runs", d.ID)
		d, err = k.follow(ctx, *d)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// resume starts the domain, if there is none, where it was only destroyed to be
// started again: by an earlier Keeper, say.
func (k *Keeper) resume(ctx context.Context, d *xen.Domain) (*xen.Domain, error) {
	config, err := os.ReadFile(k.Restarting)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, nil
	case err != nil:
		return nil, fmt.Errorf("whether %s is to be started again: %w", k.Domain, err)
	case d != nil:
		return d, os.Remove(k.Restarting)
	}
	return k.create(ctx, config)
}

func (k *Keeper) find(is func(xen.Domain) bool) (*xen.Domain, error) {
	all, err := k.Host.Domains()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if is(d) {
			return &d, nil
		}
	}
	return nil, nil
}

// follow waits for the end of a domain, and acts on it. It returns the domain that
// runs after it; nil if there is none.
func (k *Keeper) follow(ctx context.Context, d xen.Domain) (*xen.Domain, error) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var over time.Time // since when it is over and this host's
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		st, gone, reason, err := k.Host.End(d.ID)
		switch {
		case err != nil:
			k.warn("look at the domain", err)
			continue
		case gone:
			return k.await(ctx, d)
		case st != xlft.GuestOver:
			over = time.Time{}
			continue
		}
		release, err := k.Decide()
		if err != nil {
			k.warn("the domain has ended; not decided is", err)
			over = time.Time{}
			continue
		}
		if over.IsZero() {
			over = time.Now()
			k.Log.Info("the domain has ended", zap.Uint32("domid", d.ID), zap.String("reason", reason))
			k.say("Domain %d has ended: %s", d.ID, reason)
		}
		if time.Since(over) < grace {
			release()
			continue
		}
		next, done, err := k.act(ctx, d, reason)
		release()
		if err != nil {
			k.warn("act on the domain's end", err)
			continue
		}
		if done {
			return next, nil
		}
	}
}

// await waits for a domain that somebody else destroyed to come back. If it is still
// here after all, it is returned as it is.
func (k *Keeper) await(ctx context.Context, d xen.Domain) (*xen.Domain, error) {
	k.say("Domain %d is gone", d.ID)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for begun := time.Now(); time.Since(begun) < Rebirth; {
		next, err := k.find(func(x xen.Domain) bool { return x.UUID == d.UUID && x.Name == k.Domain })
		if err != nil {
			k.warn("look for the domain", err)
			begun = time.Now() // nothing was seen
		}
		if next != nil {
			return next, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
	k.Log.Info("the domain was destroyed", zap.Uint32("domid", d.ID))
	return nil, nil
}

// act does what the domain's configuration says. Not done: somebody else has begun
// to.
func (k *Keeper) act(ctx context.Context, d xen.Domain, reason string) (next *xen.Domain, done bool, err error) {
	here, err := k.find(func(x xen.Domain) bool { return x.ID == d.ID })
	if err != nil {
		return nil, false, err
	}
	if here == nil || here.UUID != d.UUID || here.Name != k.Domain {
		k.Log.Warn("somebody else acts on the domain's end", zap.Any("was", d), zap.Any("is", here))
		next, err := k.await(ctx, d)
		return next, true, err
	}
	config, err := k.Host.Config(d.ID)
	if err != nil {
		return nil, false, err
	}
	parsed, err := domconf.Parse(config)
	if err != nil {
		return nil, false, err
	}
	action := parsed.Action(reason)
	k.Log.Warn("acting on the domain's end", zap.Uint32("domid", d.ID), zap.String("reason", reason), zap.String("action", string(action)))
	switch action {
	case domconf.CoredumpDestroy, domconf.CoredumpRestart:
		k.say("Dumping the memory of domain %d", d.ID)
		os.MkdirAll(k.DumpDir, 0o700)
		// A dump that fails keeps nobody from going on, as with xl.
		if err := k.Host.CoreDump(d.ID, filepath.Join(k.DumpDir, xlft.FileName(k.Domain))); err != nil {
			k.Log.Error("dump the domain's memory", zap.Error(err))
		}
	}
	switch action {
	case domconf.Preserve:
		return nil, true, nil
	case domconf.SoftReset:
		return &d, true, k.Host.SoftReset(d.ID, config)
	}
	if !action.Again() {
		return nil, true, k.Host.Destroy(d.ID)
	}
	// From here on the domain may be gone, and is to come back.
	if err := k.note(config); err != nil {
		return nil, false, err
	}
	if action == domconf.RenameRestart {
		err = k.Host.Preserve(d.ID, config, time.Now().UTC().Format("-20060102T1504Z"))
	} else {
		err = k.Host.Destroy(d.ID)
	}
	if err != nil {
		return nil, false, err
	}
	next, err = k.create(ctx, config)
	return next, true, err
}

// note writes the configuration to the file that a successor goes by.
func (k *Keeper) note(config json.RawMessage) error {
	if err := os.WriteFile(k.Restarting+".new", config, 0o600); err != nil {
		return err
	}
	return os.Rename(k.Restarting+".new", k.Restarting)
}

// create starts the domain again, as often as that takes: the memory of the one
// before, say, comes back a little later.
func (k *Keeper) create(ctx context.Context, config json.RawMessage) (*xen.Domain, error) {
	parsed, err := domconf.Parse(config)
	if err != nil {
		return nil, err
	}
	uuid := parsed.Create.UUID
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		// Whoever created it meanwhile did what was to do.
		d, err := k.find(func(d xen.Domain) bool { return d.UUID == uuid || d.Name == k.Domain })
		if err == nil && d == nil {
			k.say("Starting the domain again")
			var domid uint32
			if domid, err = k.Host.Create(config); err == nil {
				k.Log.Warn("started the domain again", zap.Uint32("domid", domid))
				d = &xen.Domain{ID: domid, Name: k.Domain, UUID: uuid}
			}
		}
		if err == nil {
			return d, os.Remove(k.Restarting)
		}
		k.warn("start the domain again", err)
		k.say("The domain can't be started again, it is tried again: %v", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (k *Keeper) say(format string, args ...any) {
	if k.Say != nil {
		k.Say(format, args...)
	}
}

// warn logs a failure that is tried again, once until it changes.
func (k *Keeper) warn(what string, err error) {
	if k.said.New(what, err.Error()) {
		k.Log.Warn(what, zap.Error(err))
	}
}

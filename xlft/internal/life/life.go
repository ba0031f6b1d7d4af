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
	"strings"
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
	Unfinished(domid uint32) (bool, error)
	Config(domid uint32) (json.RawMessage, error)
	Destroy(domid uint32) error
	Create(config json.RawMessage) (domid uint32, err error)
	CoreDump(domid uint32, file string) error
	SoftReset(domid uint32, config json.RawMessage) error
}

// A Keeper keeps one domain's life.
type Keeper struct {
	Host   Host
	Domain string
	// Decide says whether this host owns the domain, and makes sure that nothing
	// changes that until release is called. The error says what is not decided;
	// ErrElsewhere, that the domain is another host's.
	Decide func() (release func(), err error)
	// Restarting is a file that has the configuration of a domain that was
	// destroyed to be created again. A Keeper that finds it goes on with that.
	Restarting string
	// DumpDir is where a domain's memory goes for coredump-*.
	DumpDir string
	// Alone, if set, makes sure that no xl waits for the end of the domain too. It
	// is called again and again.
	Alone func(domid uint32)
	// Say, if set, is told what the Keeper does.
	Say func(format string, args ...any)
	Log *zap.Logger

	said   xlft.Said
	dumped uint32 // the domain whose memory was dumped last
	acted  string // the end that was acted on last
}

// ErrElsewhere: the other host has the domain.
var ErrElsewhere = errors.New("the other host has the domain")

// ErrNotStarted: a domain could not be started again.
var ErrNotStarted = errors.New("the domain could not be started again: remove the cause, then \"xl create\" starts it")

var errUndecided = errors.New("not decided")

const (
	poll = time.Second
	// grace is what somebody else who waits for the domain's end gets to act on
	// it: an "xl create -F", libvirt. xl takes two seconds between the end of a
	// domain and its next start.
	grace = 3 * time.Second
	// Rebirth is how long a domain that was destroyed by somebody else may take to
	// come back as the same one, by its UUID.
	Rebirth = 20 * time.Second
	// Patience is how long attempts to start a domain again go on.
	Patience = 10 * time.Minute
	// Waits between two attempts to create a domain.
	firstWait   = time.Second
	longestWait = 30 * time.Second

	aloneEvery = 5 * time.Second
)

// Run keeps the domain until it is gone for good, which is no error.
func (k *Keeper) Run(ctx context.Context) error {
	d, err := k.find(func(d xen.Domain) bool { return d.Name == k.Domain })
	for err == nil {
		if d, err = k.resume(ctx, d); d == nil || err != nil {
			break
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
// started again: by an earlier Keeper, say, which may have died while the new one
// was being built.
func (k *Keeper) resume(ctx context.Context, d *xen.Domain) (*xen.Domain, error) {
	config, err := os.ReadFile(k.Restarting)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, nil
	case err != nil:
		return nil, fmt.Errorf("whether %s is to be started again: %w", k.Domain, err)
	case d == nil:
		return k.create(ctx, config)
	}
	if ended, err := k.clear(ctx, *d); err != nil || !ended {
		if err == nil {
			err = os.Remove(k.Restarting)
		}
		return d, err
	}
	return k.create(ctx, config)
}

// clear destroys a domain that was never finished, and reports whether it did. One
// that somebody else builds has its time.
func (k *Keeper) clear(ctx context.Context, d xen.Domain) (bool, error) {
	for begun := time.Now(); ; {
		unfinished, err := k.Host.Unfinished(d.ID)
		if err == nil && !unfinished {
			return false, nil
		}
		if err == nil && time.Since(begun) >= Rebirth {
			release, err := k.Decide()
			if err != nil {
				return false, err
			}
			defer release()
			k.Log.Warn("destroying a domain whose building was never finished", zap.Uint32("domid", d.ID))
			return true, k.Host.Destroy(d.ID)
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(poll):
		}
	}
}

// find returns a domain; a replica that this host holds is none.
func (k *Keeper) find(is func(xen.Domain) bool) (*xen.Domain, error) {
	all, err := k.Host.Domains()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if is(d) && !strings.HasSuffix(d.Name, domconf.ReplicaSuffix) {
			return &d, nil
		}
	}
	return nil, nil
}

// follow waits for the end of a domain, and acts on it. It returns the domain that
// runs after it; nil if there is none, or a configuration has been left for resume.
func (k *Keeper) follow(ctx context.Context, d xen.Domain) (*xen.Domain, error) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var over, alone time.Time // since when it is over and this host's; when Alone was called
	for {
		if k.Alone != nil && time.Since(alone) >= aloneEvery {
			k.Alone(d.ID)
			alone = time.Now()
		}
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
		then, err := k.act(d, reason)
		release()
		if err != nil {
			k.warn("act on the domain's end", err)
			over = time.Now()
			continue
		}
		switch then {
		case goesOn:
			return &d, nil
		case again:
			return k.resume(ctx, nil)
		}
		return nil, nil
	}
}

// await waits for a domain that somebody else destroyed to come back.
func (k *Keeper) await(ctx context.Context, d xen.Domain) (*xen.Domain, error) {
	k.say("Domain %d is gone", d.ID)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for begun, last := time.Now(), false; ; {
		next, err := k.find(func(x xen.Domain) bool { return x.UUID == d.UUID })
		switch {
		case err != nil:
			k.warn("look for the domain", err)
			begun = time.Now() // nothing was seen
		case next != nil:
			return next, nil
		case last:
			k.Log.Info("the domain was destroyed", zap.Uint32("domid", d.ID))
			return nil, nil
		}
		last = time.Since(begun) >= Rebirth
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// then is what comes after the end of a domain.
type then int

const (
	nothing then = iota
	goesOn       // the same domain
	again        // it is to be created again, by the file that resume reads
)

// act does what the domain's configuration says.
func (k *Keeper) act(d xen.Domain, reason string) (then, error) {
	config, err := k.Host.Config(d.ID)
	if err != nil {
		return nothing, err
	}
	parsed, err := domconf.Parse(config)
	if err != nil {
		return nothing, err
	}
	action := parsed.Action(reason)
	if end := fmt.Sprint(d.ID, reason); k.acted != end {
		k.acted = end
		k.Log.Warn("acting on the domain's end", zap.Uint32("domid", d.ID), zap.String("reason", reason), zap.String("action", string(action)))
	}
	anew := action.Again() && action != domconf.SoftReset
	if anew {
		// From here on the domain may be gone, and is to come back.
		if err := k.note(config); err != nil {
			return nothing, err
		}
	}
	switch action {
	case domconf.CoredumpDestroy, domconf.CoredumpRestart, domconf.RenameRestart:
		// The remains of a domain can't be kept beside its next run: they keep its
		// disks (libxl_domain_preserve leaves the devices). So they are dumped.
		k.dump(d.ID)
	case domconf.Preserve:
		return nothing, nil
	case domconf.SoftReset:
		err := k.Host.SoftReset(d.ID, config)
		if err == nil {
			return goesOn, nil
		}
		// As xl does: libxl has it for HVM domains only.
		k.Log.Error("the domain can't be reset, and is destroyed", zap.Error(err))
	}
	if err := k.Host.Destroy(d.ID); err != nil {
		return nothing, err
	}
	if anew {
		return again, nil
	}
	return nothing, nil
}

// dump dumps a domain's memory, once. A dump that fails keeps nobody from going on,
// as with xl.
func (k *Keeper) dump(domid uint32) {
	if k.dumped == domid {
		return
	}
	k.dumped = domid
	k.say("Dumping the memory of domain %d", domid)
	err := os.MkdirAll(k.DumpDir, 0o700)
	if err == nil {
		err = k.Host.CoreDump(domid, filepath.Join(k.DumpDir, xlft.FileName(k.Domain)))
	}
	if err != nil {
		k.Log.Error("dump the domain's memory", zap.Error(err))
	}
}

// note writes the configuration to the file that resume goes by.
func (k *Keeper) note(config json.RawMessage) error {
	if err := os.WriteFile(k.Restarting+".new", config, 0o600); err != nil {
		return err
	}
	return os.Rename(k.Restarting+".new", k.Restarting)
}

// create starts the domain again, in more than one attempt if need be: the memory
// of the one before, say, comes back a little later. Who owns the domain is asked
// before each.
func (k *Keeper) create(ctx context.Context, config json.RawMessage) (*xen.Domain, error) {
	parsed, err := domconf.Parse(config)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		d, err := k.tryCreate(parsed, config)
		switch {
		case err == nil:
			return d, os.Remove(k.Restarting)
		case errors.Is(err, ErrElsewhere):
			k.Log.Warn("the domain is not started again", zap.Error(err))
			return nil, os.Remove(k.Restarting)
		case errors.Is(err, errUndecided):
			begun = time.Now() // that is not the domain's fault
		case time.Since(begun) > Patience:
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrNotStarted, err), os.Remove(k.Restarting))
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

func (k *Keeper) tryCreate(parsed *domconf.Config, config json.RawMessage) (*xen.Domain, error) {
	release, err := k.Decide()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUndecided, err)
	}
	defer release()
	here := func(d xen.Domain) bool { return d.UUID == parsed.Create.UUID || d.Name == parsed.Create.Name }
	// Whoever created it meanwhile did what was to do.
	d, err := k.find(here)
	if err != nil || d != nil {
		return d, err
	}
	k.say("Starting the domain again")
	domid, err := k.Host.Create(config)
	if err != nil {
		return nil, err
	}
	k.Log.Warn("started the domain again", zap.Uint32("domid", domid))
	return &xen.Domain{ID: domid, Name: parsed.Create.Name, UUID: parsed.Create.UUID}, nil
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

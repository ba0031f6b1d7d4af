// Package protector is the process that protects one domain from this host: it
// opens the gates, runs a primary.Session and answers the commands of an
// operator.
//
// The one rule a caller must know: a domain has one protector. Run takes the
// domain's lock first, and ErrAlready says that another process has it.
package protector

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"xlft/netbuffer"
	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/preflight"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// ErrAlready: a protector of the domain runs.
var ErrAlready = errors.New("is protected already")

// A Protector protects one domain.
type Protector struct {
	Config   *config.Config
	Domain   string
	Backup   string // the peer that holds the copy; "": the configuration's
	Software string // for the peer's log
	Log      *zap.Logger
	// Watch, if set, runs beside the session until the session has ended.
	Watch func(ctx context.Context, s *primary.Session)
	// Proven: the domain was protected before it was started again.
	Proven bool

	run *protected // the last one
}

// LastRun returns the run of the domain that the last session was of; "" if none was found.
func (p *Protector) LastRun() string {
	if p.run == nil {
		return ""
	}
	return Instance(p.run.Domain)
}

// Found reports whether Run found the domain.
func (p *Protector) Found() bool { return p.run != nil }

// Run protects the domain until protection ends. The error is nil if an operator
// ended it; the outcome is "" if no session began.
func (p *Protector) Run(ctx context.Context) (primary.Outcome, error) {
	c := p.Config
	id, err := wire.LoadIdentity(c.Identity)
	if err != nil {
		return "", err
	}
	peer, err := c.Backup(c.For(p.Domain), p.Backup)
	if err != nil {
		return "", err
	}
	h, err := xen.Open()
	if err != nil {
		return "", err
	}
	defer h.Close()
	l, err := lock(c.RunDir, p.Domain)
	if err != nil {
		return "", err
	}
	defer l.Close()
	d, err := h.Lookup(p.Domain)
	if err != nil {
		if errors.Is(err, xen.ErrNoDomain) {
			p.cleanUp(h)
		}
		return "", err
	}
	p.run = &protected{Domain: d}
	s, err := p.session(ctx, h, d, &preflight.Check{Config: c, Identity: id, Host: h, Software: p.Software}, peer)
	if err != nil {
		return "", err
	}
	watch, unwatch := context.WithCancel(ctx)
	defer unwatch()
	p.watchArbiter(watch, s)
	stop, err := serve(c.RunDir, s)
	if err != nil {
		// What a gate that was found holding has must not leave before it is known
		// who owns the domain.
		if !s.FoundHolding {
			s.Gates.Net.Close()
		}
		return "", err
	}
	defer stop()
	DontWait(c.RunDir, p.Domain)
	s.Hung = func(err error) {
		LeaveError(c.RunDir, p.Domain, err)
		os.Exit(ExitHung)
	}
	if p.Watch != nil {
		go p.Watch(ctx, s)
	}
	s.Proven = p.Proven
	s.Run(ctx)
	p.run.again, p.run.Proven = s.Again()
	return s.Result()
}

// session opens the gates and returns a session that has not begun.
func (p *Protector) session(ctx context.Context, h *xen.Host, d xen.Domain, check *preflight.Check, peer config.Peer) (*primary.Session, error) {
	c, dc := p.Config, p.Config.For(p.Domain)
	// Not yet whether the domain can be protected as it is: first the session has
	// to decide on what an earlier protector left.
	o, conf, err := check.Describe(ctx, d)
	if err != nil {
		return nil, err
	}
	p.run.Config = conf
	records := store.Dir(c.StateDir)
	if err := p.renamed(records, d); err != nil {
		return nil, err
	}
	gate, err := openGate(h, d, conf.Devices(), dc.NetBuffer)
	if err != nil {
		return nil, fmt.Errorf("hold output: %w", err)
	}
	gates := xlft.Gates{Net: gate}
	_, found := gate.Holding()
	guest := h.Guest(d)
	if err := guest.Inherit(filepath.Join(c.RunDir, xlft.FileName(p.Domain)+".suspend"), Instance(d)); err != nil {
		p.Log.Warn("a suspend of the domain counts as this program's", zap.String("domain", p.Domain), zap.Error(err))
	}
	size := settling{o.Pages}
	offer := func() (wire.Offer, error) {
		var conf *domconf.Config
		o, err := size.settled(ctx, func() (o wire.Offer, err error) {
			o, conf, err = check.Offer(ctx, d)
			return o, err
		})
		if err == nil {
			err = gate.covers(d.ID, conf.Devices())
		}
		if err == nil {
			err = untouched(guest, d.ID)
		}
		if err == nil && conf.Create.Name != p.Domain {
			err = fmt.Errorf("it was renamed to %s: \"xl rename %s %s\", or \"xl ft-start %s\" to protect it by that name", conf.Create.Name, conf.Create.Name, p.Domain, conf.Create.Name)
		}
		return o, err
	}
	same := func(accepted wire.Offer) error {
		raw, err := h.Config(d.ID)
		if err != nil {
			return nil // whether it still is there, others find out
		}
		now, err := domconf.Parse(raw)
		if err != nil {
			return err
		}
		was, err := domconf.Parse(accepted.Config)
		if err != nil {
			return err
		}
		if all := was.Changes(now); len(all) > 0 {
			return fmt.Errorf("the domain was changed while it was protected: %s", strings.Join(all, "; "))
		}
		return nil
	}
	log := p.Log.With(zap.String("domain", p.Domain), zap.String("backup", peer.Name))
	if len(o.Disks) > 0 {
		client := diskserver.NewClient(diskserver.CommandSocket(c.RunDir, p.Domain), peer.Name, o.Disks)
		gates.Disks = &disks{client, func() error { return outdate(records, p.Domain, o.Disks) }}
	}
	s := &primary.Session{
		Domain: p.Domain, Software: p.Software, Offer: o, Instance: Instance(d), Describe: offer, Same: same,
		Settings: primary.Settings{
			Pacing: dc.Pacing, FailureTimeout: dc.FailureTimeout,
			MoveAfter: moveAfter(dc), AckTimeout: dc.AckTimeout, SuspendTimeout: dc.SuspendTimeout, RetryDelay: dc.RetryDelay,
			SpoolLimit: int64(c.CheckpointMemory), PageCache: int64(c.PageCache), Compress: dc.Compress,
		},
		Guest: guest, Gates: gates, Events: gate.Events(), Watching: gate.watching, Polled: gate.polled, Arbiter: arbiter.New(c, p.Software, check.Dial, p.Log),
		Dial: check.Dial(peer), Peer: peer.Name, Store: records, Log: log, FoundHolding: found,
		Peers: slices.Sorted(maps.Keys(c.Peers)),
		DialPeer: func(name string) wire.Dialer {
			if other, ok := c.Peers[name]; ok {
				return check.Dial(other)
			}
			return func(context.Context) (net.Conn, error) {
				return nil, fmt.Errorf("%s may run on %s, which protected it last, and the configuration has no [peer.%s]: put it back", p.Domain, name, name)
			}
		},
	}
	gate.quiesce = s.Quiesce
	return s, nil
}

// moveAfter is how long a lost backup is waited for: for ever, if nobody would have another
// one take its place.
func moveAfter(d config.Domain) time.Duration {
	if d.Protect && len(d.Backups) > 1 {
		return d.MoveAfter
	}
	return 0
}

// watchArbiter finds out all the time whether the arbiters of both hosts could decide,
// until ctx ends.
func (p *Protector) watchArbiter(ctx context.Context, s *primary.Session) {
	a, ok := s.Arbiter.(xlft.ArbiterChecker)
	if !ok || p.Config.Arbiter.CheckInterval == 0 {
		return
	}
	h := &arbiter.Health{
		Arbiter: a, Peer: s.Peer, Dir: p.Config.RunDir, Every: p.Config.Arbiter.CheckInterval, Log: s.Log,
		Backup: func(ctx context.Context) (string, error) {
			st := s.Status()
			if !st.Protected {
				return "", nil // there is no session to ask about
			}
			ask, cancel := context.WithTimeout(ctx, wire.OwnerTimeout)
			defer cancel()
			var r wire.OwnerResult
			q := wire.OwnerQuery{Domain: s.Domain, UUID: s.Offer.UUID, Generation: st.Generation, Patience: wire.OwnerTimeout}
			err := wire.Ask(ask, s.Dial, s.Software, wire.TypeOwner, q, wire.TypeOwnerResult, &r)
			return r.Arbiter, err
		},
	}
	s.Health = h.Now
	go h.Run(ctx)
}

// untouched returns an error while another program saves or migrates the domain: it
// suspends the domain, and needs Xen's log of written pages.
func untouched(guest *xen.Guest, domid uint32) error {
	switch st, _, err := guest.State(); {
	case err != nil:
		return err
	case st == xlft.GuestSuspendedByOther:
		return xlft.ErrSuspendedByOther
	}
	return xen.Unsaved(domid)
}

// renamed says under which name a domain was protected that has another name
// now; nil if there is no such record. Its backup knows it by that name.
func (p *Protector) renamed(records store.Dir, d xen.Domain) error {
	all, _, err := records.All()
	if err != nil {
		return err
	}
	for name, o := range all {
		if name != p.Domain && o.Left() && o.Instance != "" && o.Instance == Instance(d) {
			return fmt.Errorf("this domain was protected as %s, and %s may run it by that name: \"xl rename %s %s\", then \"xl ft-start %s\"", name, o.Peer, p.Domain, name, name)
		}
	}
	return nil
}

// settling is how many pages the domain had at the last look. A domain that is
// protected keeps the memory that it has: one that is on its way to a new size
// would be held halfway.
type settling struct{ pages uint64 }

// A domain whose memory changed gets some looks, a moment apart.
const (
	settleLooks = 5
	settleDelay = time.Second
)

// settled returns an offer once the domain has as many pages as at the look
// before.
func (s *settling) settled(ctx context.Context, offer func() (wire.Offer, error)) (wire.Offer, error) {
	for looks := 1; ; looks++ {
		o, err := offer()
		before := s.pages
		s.pages = o.Pages
		switch {
		case err != nil || before == 0 || before == o.Pages:
			return o, err
		case looks == settleLooks:
			return o, fmt.Errorf("the domain's memory still changes: it had %d KiB, now %d KiB", before*4, o.Pages*4)
		}
		select {
		case <-time.After(settleDelay):
		case <-ctx.Done():
			return o, ctx.Err()
		}
	}
}

// Ran reports whether a protector of a domain ran since this host booted.
func Ran(runDir, domain string) bool {
	_, err := os.Stat(lockFile(runDir, domain))
	return err == nil
}

// Left reports whether an earlier protector left a domain for its successor to
// decide on. If its record can't be read, it may have.
func Left(c *config.Config, domain string) bool {
	o, err := store.Dir(c.StateDir).Load(domain)
	if err != nil {
		return Ran(c.RunDir, domain)
	}
	return o.Left() && o.Instance != "" && strings.HasPrefix(o.Instance, BootID()+"/")
}

// ExitHung is the exit status of a protector that can't end by itself, because
// something below it does not return. Its successor finds what is left.
const ExitHung = 70

// lock makes sure that a domain has one protector.
func lock(runDir, domain string) (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(lockFile(runDir, domain), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// The domain's keeper has the lock for a moment, now and then.
	for tries := 0; ; tries++ {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case tries == lockTries:
			f.Close()
			return nil, ErrAlready
		}
		time.Sleep(lockNap)
	}
}

const (
	lockTries = 10
	lockNap   = 50 * time.Millisecond
)

func lockFile(runDir, domain string) string { return control.Socket(runDir, domain) + ".lock" }

// Instance tells a run of a domain from all others: this boot, this domid. "" if the boot
// is unknown.
func Instance(d xen.Domain) string {
	boot := BootID()
	if boot == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d", boot, d.ID)
}

// BootID is the kernel's name for the time since this host booted; "" if unknown.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// cleanUp takes away the gates of domains that are gone.
func (p *Protector) cleanUp(h *xen.Host) {
	ids, err := netbuffer.Stale()
	if err != nil {
		p.Log.Warn("look for gates left behind", zap.Error(err))
		return
	}
	for _, id := range ids {
		if _, err := h.Lookup(fmt.Sprint(id)); !errors.Is(err, xen.ErrNoDomain) {
			continue
		}
		if err := netbuffer.Cleanup(id, netbuffer.Options{}, true); err != nil {
			p.Log.Warn("remove a gate left behind", zap.Uint32("domid", id), zap.Error(err))
		}
	}
}

// errorFile is where a protector that failed leaves the reason for ft-start.
func errorFile(runDir, domain string) string {
	return control.Socket(runDir, domain) + ".error"
}

// LeaveError leaves the reason of a failed protector for LastError; nil removes
// an earlier one.
func LeaveError(runDir, domain string, err error) {
	if err == nil {
		os.Remove(errorFile(runDir, domain))
		return
	}
	os.MkdirAll(filepath.Dir(errorFile(runDir, domain)), 0o755)
	os.WriteFile(errorFile(runDir, domain), []byte(err.Error()+"\n"), 0o644)
}

// LastError returns why the last protector of a domain failed; "" if it left no
// reason.
func LastError(runDir, domain string) string {
	b, err := os.ReadFile(errorFile(runDir, domain))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// choiceFile names the backup that an operator chose for a domain.
func choiceFile(runDir, domain string) string {
	return control.Socket(runDir, domain) + ".backup"
}

// ChooseBackup makes a peer the backup of a domain instead of the
// configuration's, for the protector that starts next and its successors until
// the host boots. "" is the configuration's.
func ChooseBackup(runDir, domain, peer string) error {
	path := choiceFile(runDir, domain)
	if peer == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(peer+"\n"), 0o644)
}

// ChosenBackup returns the peer that ChooseBackup named; "" if none. A choice that
// can't be read is an error: the configuration's backup may be another host.
func ChosenBackup(runDir, domain string) (string, error) {
	b, err := os.ReadFile(choiceFile(runDir, domain))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read which backup was chosen: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

package protector

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// still is a guest that runs and a gate that holds nothing.
type still struct {
	xlft.Guest
	xlft.Gate
}

func (still) State() (xlft.GuestState, string, error) { return xlft.GuestRuns, "", nil }
func (still) Held() (held, limit uint64, err error)   { return 0, 0, nil }
func (still) ReleaseAll() error                       { return nil }
func (still) Close() error                            { return nil }

// A client is told how a session ended, and that there is none any more.
func TestAPI(t *testing.T) {
	run := t.TempDir()
	calls := make(chan struct{})
	s := &primary.Session{
		Domain: "web1", Peer: "beta", Guest: still{}, Gates: xlft.Gates{Net: still{}}, Arbiter: arbiter.None{},
		Store: store.Dir(t.TempDir()), Log: zap.NewNop(),
		Settings: primary.Settings{Pacing: xlft.Pacing{EpochMax: time.Second, WindowMax: time.Second}, RetryDelay: time.Hour},
		Dial: func(ctx context.Context) (_ net.Conn, err error) {
			close(calls)
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
	stop, err := serve(run, s)
	if err != nil {
		t.Fatal(err)
	}
	go s.Run(context.Background())
	<-calls // it connects, and goes on doing so
	c := NewClient(run, "web1")
	if st, err := c.Status(t.Context()); err != nil || st.State != primary.Connecting || st.Peer != "beta" {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, err := c.Failover(t.Context()); err == nil || err.Error() != "web1 is not protected now (connecting)" {
		t.Errorf("failover: %v", err)
	}
	if p, err := c.Pace(t.Context(), []string{"mode=strict", "epoch_max=2s"}); err != nil || p.Mode != xlft.ModeStrict || p.EpochMax != 2*time.Second {
		t.Errorf("pace: %+v, %v", p, err)
	}
	if _, err := c.Pace(t.Context(), []string{"epoch_max=1ms"}); err == nil || err.Error() != "epoch_max: 1ms is not between 5ms and 1m0s" {
		t.Errorf("pace: %v", err)
	}
	if st, err := c.Status(t.Context()); err != nil || st.Pacing.EpochMax != 2*time.Second {
		t.Errorf("status %+v, %v", st, err)
	}
	if o, err := c.Stop(t.Context()); err != nil || o != primary.Stopped {
		t.Errorf("stop: %q, %v", o, err)
	}
	stop()
	if _, err := c.Stop(t.Context()); !errors.Is(err, control.ErrDown) {
		t.Errorf("a second stop: %v", err)
	}
}

// A domain has one protector.
func TestLock(t *testing.T) {
	run := t.TempDir()
	l, err := lock(run, "web1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(run, "web1"); !errors.Is(err, ErrAlready) {
		t.Errorf("a second protector: %v", err)
	}
	if other, err := lock(run, "web2"); err != nil {
		t.Error(err)
	} else {
		other.Close()
	}
	l.Close()
	if l, err = lock(run, "web1"); err != nil {
		t.Errorf("after the first one's end: %v", err)
	}
	l.Close()
}

func TestLeaveError(t *testing.T) {
	run := t.TempDir()
	LeaveError(run, "web/1", errors.New("why"))
	if got := LastError(run, "web/1"); got != "why" {
		t.Errorf("%q", got)
	}
	LeaveError(run, "web/1", nil)
	if got := LastError(run, "web/1"); got != "" {
		t.Errorf("an earlier reason is left: %q", got)
	}
}

// The copies here are known as outdated, whatever becomes of the disk server,
// which is down here.
func TestDiscardOutdates(t *testing.T) {
	records := store.Dir(t.TempDir())
	ds := []wire.Disk{{VDev: "xvda", Shared: false}, {VDev: "xvdb", Shared: false}}
	d := &disks{diskserver.NewClient(diskserver.CommandSocket(t.TempDir(), "web1"), "beta", ds), func() error { return outdate(records, "web1", ds) }}
	d.Discard()
	for _, v := range []string{"xvda", "xvdb"} {
		if r, err := records.LoadDisk("web1", v); err != nil || r.State != xlft.Outdated {
			t.Errorf("%s is %+v, %v", v, r, err)
		}
	}
}

// The protector of a domain finds the backup that ft-start was given, whatever
// the domain's name; the configuration's again when ft-start names none. A choice
// that can't be read is not taken for none.
func TestChooseBackup(t *testing.T) {
	run := filepath.Join(t.TempDir(), "run")
	chosen := func(domain string) string {
		t.Helper()
		peer, err := ChosenBackup(run, domain)
		if err != nil {
			t.Error(err)
		}
		return peer
	}
	for _, domain := range []string{"web1", "web-1", "web 1", "a/b"} {
		if got := chosen(domain); got != "" {
			t.Errorf("%s: %q before a choice", domain, got)
		}
		if err := ChooseBackup(run, domain, "gamma"); err != nil {
			t.Fatal(err)
		}
		if got := chosen(domain); got != "gamma" {
			t.Errorf("%s: %q", domain, got)
		}
	}
	if err := ChooseBackup(run, "web1", ""); err != nil || chosen("web1") != "" || chosen("web-1") != "gamma" {
		t.Errorf("after a choice was taken back: %v, %q, %q", err, chosen("web1"), chosen("web-1"))
	}
	if err := ChooseBackup(run, "web1", ""); err != nil {
		t.Errorf("taken back twice: %v", err)
	}
	if err := os.Mkdir(choiceFile(run, "web1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if peer, err := ChosenBackup(run, "web1"); err == nil {
		t.Errorf("what can't be read is %q", peer)
	}
}

// A domain is offered when its memory has been the same at two looks.
func TestSettling(t *testing.T) {
	for _, c := range []struct {
		name  string
		pages []uint64 // at each look
		looks int
		ok    bool
	}{
		{"the same", []uint64{1000}, 1, true},
		{"another size", []uint64{800, 800}, 2, true},
		{"on its way", []uint64{900, 800, 700, 700}, 4, true},
		{"on a long way", []uint64{900, 800, 700, 600, 500}, 5, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, looks := settling{1000}, 0
			o, err := s.settled(t.Context(), func() (wire.Offer, error) {
				looks++
				return wire.Offer{Pages: c.pages[looks-1]}, nil
			})
			if looks != c.looks || (err == nil) != c.ok || c.ok && o.Pages != c.pages[len(c.pages)-1] {
				t.Errorf("%s: %d pages after %d looks: %v", c.name, o.Pages, looks, err)
			}
		})
	}
}

// A copy that was given up, and that an operator renamed, is not protected by its new
// name: the backup runs the domain by the old one.
func TestRenamed(t *testing.T) {
	d := xen.Domain{ID: 7, Name: "web2"}
	records := store.Dir(t.TempDir())
	p := &Protector{Domain: "web2"}
	for role, exposed := range map[xlft.HostRole]bool{xlft.HostYielded: false, xlft.HostPrimary: true} {
		if err := records.Save("web", xlft.Ownership{Generation: 3, Role: role, Exposed: exposed, Peer: "beta", UUID: "u", Instance: Instance(d)}); err != nil {
			t.Fatal(err)
		}
		if err := p.renamed(records, d); err == nil {
			t.Errorf("%s: protected by another name", role)
		}
	}
	if err := records.Save("web", xlft.Ownership{Role: xlft.HostPrimary, Instance: Instance(d)}); err != nil {
		t.Fatal(err)
	}
	if err := p.renamed(records, d); err != nil {
		t.Errorf("of a protection that was ended in order: %v", err)
	}
}

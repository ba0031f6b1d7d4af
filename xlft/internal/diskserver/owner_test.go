package diskserver

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/diskcopy"
	"xlft/xlft/internal/disktest"
	"xlft/xlft/wire"
)

// peer returns the way to a host that gives one answer to the question who owns
// the domain.
func peer(t *testing.T, answer wire.OwnerResult) wire.Dialer {
	return func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		go func() {
			c := wire.NewConn(theirs)
			if _, err := wire.Welcome(c, "test", 0, 10*time.Second); err != nil {
				return
			}
			var q wire.OwnerQuery
			if c.Expect(wire.TypeOwner, &q) == nil && q.Domain == "web1" && q.Generation == 3 && q.UUID == "u" {
				if q.Reclaim {
					t.Error("the backup is told to give its replica up, the only copy of what was let out")
				}
				c.WriteJSON(wire.TypeOwnerResult, 0, answer)
			}
		}()
		return ours, nil
	}
}

// A host lost its power while its backup could take the domain over. It does not
// give out its disk before the backup said that it did not.
func TestStalePrimaryStarts(t *testing.T) {
	const boot = "this-boot"
	stale := xlft.Ownership{Generation: 3, Role: xlft.HostPrimary, Peer: "B", UUID: "u", Exposed: true, Instance: "an-earlier-boot/7"}
	with := func(change func(*xlft.Ownership)) xlft.Ownership {
		o := stale
		change(&o)
		return o
	}
	none := wire.OwnerResult{Role: wire.RoleNone, Generation: 3}
	took := wire.OwnerResult{Role: wire.RoleRunning, Generation: 3}
	for _, c := range []struct {
		what    string
		o       xlft.Ownership
		answer  wire.OwnerResult
		unheard bool
		want    string // of the refusal; "" if the disk is opened
	}{
		{"nothing is known", xlft.Ownership{}, took, true, ""},
		{"the backup did not take over", stale, none, false, ""},
		{"the backup took over", stale, took, false, "and it did"},
		{"the backup has a replica", stale, wire.OwnerResult{Role: wire.RoleReplica, Generation: 3}, false, "xl ft-status"},
		{"the backup took over long ago", stale, wire.OwnerResult{Role: wire.RoleRunning, Generation: 2}, false, ""},
		{"the backup is not to be heard", stale, none, true, "xlft disk promote web1"},
		{"this boot's", with(func(o *xlft.Ownership) { o.Instance = boot + "/7" }), took, true, ""},
		{"not exposed", with(func(o *xlft.Ownership) { o.Exposed = false }), took, true, ""},
		{"handed on", with(func(o *xlft.Ownership) { o.Exposed, o.Handed = false, true }), took, false, "and it did"},
		{"this host took it over", with(func(o *xlft.Ownership) { o.Role = xlft.HostOwner }), took, true, ""},
	} {
		h := newHostDir(t, 'a')
		if err := h.Store.Save("web1", c.o); err != nil {
			t.Fatal(err)
		}
		s := h.server(&fakeDevices{})
		s.Boot = boot
		s.Owned = func() (xlft.Ownership, error) { return h.Store.Load("web1") }
		s.Dial = func(string) (wire.Dialer, error) {
			if c.unheard {
				return func(context.Context) (net.Conn, error) { return nil, errors.New("no route to host") }, nil
			}
			return peer(t, c.answer), nil
		}
		_, err := s.Attach("xvda", User{Name: Operator})
		disktest.Refused(t, c.what, err, c.want)
		if c.want != "" {
			disktest.Refused(t, c.what+", on the socket", s.Open("xvda"), c.want)
			// An operator knows better.
			copies := &diskcopy.Copies{Config: func() *config.Config { return h.Conf }, Store: h.Store, Boot: boot}
			if _, err := copies.Promote("web1", "", diskcopy.AskShared); err != nil {
				t.Errorf("%s: promote: %v", c.what, err)
			}
			_, err := s.Attach("xvda", User{Name: Operator})
			disktest.Refused(t, c.what+", promoted", err, "")
		}
		s.Close()
	}
}

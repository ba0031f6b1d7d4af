package primary

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// An answer about an earlier generation, which a slow backup or arbiter gives after
// that was settled in another way, decides nothing about the present one.
func TestLateAnswers(t *testing.T) {
	for _, late := range []Event{Owner{wire.RoleNone}, Owner{wire.RoleRunning}, Arbitrated{xlft.Won}, Arbitrated{xlft.Lost}} {
		s := &Session{Log: zap.NewNop()}
		s.init()
		s.m.state, s.m.exposed, s.m.handed = Arbitrating, true, true
		s.decider.generation = 5
		s.step(t.Context(), decided{late, 4, nil})
		if st := s.m.State(); st != Arbitrating {
			t.Errorf("%#v of generation 4 leads to %v in generation 5", late, st)
		}
	}
}

// What asks says which generation it asked about.
func TestAnswersAreMarked(t *testing.T) {
	s := &Session{Log: zap.NewNop(), Arbiter: sure{}}
	s.init()
	d := decider{peer: "beta", generation: 4, dial: func(context.Context) (net.Conn, error) { return nil, errors.New("no route") }}
	for name, ask := range map[string]func(){
		"owner": func() { s.askOwner(t.Context(), d) },
		"claim": func() { s.claim(t.Context(), d, "", false, nil) },
	} {
		go ask()
		if ev, ok := (<-s.events).(decided); !ok || ev.generation != 4 {
			t.Errorf("%s: %+v", name, ev)
		}
	}
}

// unsure can't decide; lost decides for the other host.
type (
	unsure struct{}
	lost   struct{}
)

func (unsure) Claim(context.Context, xlft.Claim) (bool, error) {
	return false, errors.New("the agent failed")
}
func (unsure) String() string                                { return "fence" }
func (lost) Claim(context.Context, xlft.Claim) (bool, error) { return false, nil }
func (lost) String() string                                  { return "fence" }

// What was not decided says why, and who it is that did not.
func TestUndecidedSaysWhy(t *testing.T) {
	for _, c := range []struct {
		arbiter    xlft.Arbiter
		generation uint64
		handed     bool
		want       []string
	}{
		{unsure{}, 4, false, []string{"fence", "the agent failed"}},
		{unsure{}, 0, false, []string{"the record of this domain is lost", "beta", "no route"}},
		{lost{}, 4, true, []string{"beta has claimed the domain that it was handed"}},
		{lost{}, 4, false, nil},
		{sure{}, 4, false, nil},
	} {
		s := &Session{Log: zap.NewNop(), Arbiter: c.arbiter}
		s.init()
		d := decider{peer: "beta", generation: c.generation, dial: func(context.Context) (net.Conn, error) { return nil, errors.New("no route") }}
		go s.claim(t.Context(), d, "", c.handed, nil)
		why := (<-s.events).(decided).why
		if (why != nil) != (c.want != nil) {
			t.Errorf("%+v: %v", c, why)
		}
		for _, w := range c.want {
			if why != nil && !strings.Contains(why.Error(), w) {
				t.Errorf("%q, want %q", why, w)
			}
		}
	}
}

// A backup that ran the domain in an earlier generation does not own it.
func TestOlderOwner(t *testing.T) {
	for role, want := range map[wire.OwnerResult]wire.Role{
		{Role: wire.RoleRunning, Generation: 3}: wire.RoleNone,
		{Role: wire.RoleRunning, Generation: 4}: wire.RoleRunning,
		{Role: wire.RoleRunning, Generation: 5}: wire.RoleRunning,
		{Role: wire.RoleReplica, Generation: 3}: wire.RoleReplica,
	} {
		dial := func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				c := wire.NewConn(there)
				var q wire.OwnerQuery
				if _, err := wire.Welcome(c, "test", 0, time.Second); err != nil {
					t.Error(err)
				} else if err := c.Expect(wire.TypeOwner, &q); err != nil || q.Generation != 4 || !q.Reclaim {
					t.Errorf("asked %+v, %v", q, err)
				}
				c.WriteJSON(wire.TypeOwnerResult, 0, role)
			}()
			return here, nil
		}
		s := &Session{Log: zap.NewNop()}
		if got, err := s.ownerRole(t.Context(), decider{peer: "beta", generation: 4, dial: dial}); got != want || err != nil {
			t.Errorf("%+v, asked about generation 4, counts as %q, want %q", role, got, want)
		}
	}
}

// sure is an arbiter that gives every claim to whoever makes it.
type sure struct{}

func (sure) Claim(context.Context, xlft.Claim) (bool, error) { return true, nil }
func (sure) String() string                                  { return "sure" }

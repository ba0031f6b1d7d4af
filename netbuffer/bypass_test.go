package netbuffer

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// moved is a kernel whose vif is redirected, or not, as other programs please.
type moved struct {
	host
	wrong   error // what redirected finds
	later   error // what alone finds
	lost    uint64
	holding bool // what restore was told
}

func (m *moved) added([]*vif) ([]string, error) { return nil, nil }
func (m *moved) remember(*vif, bool) error      { return nil }
func (m *moved) redirected(v *vif) error        { v.lost = m.lost; return m.wrong }
func (m *moved) alone(*vif) error               { return m.later }

func (m *moved) restore(v *vif, holding bool) (bool, error) {
	if !errors.Is(m.wrong, ErrBypassed) {
		return false, m.wrong
	}
	m.wrong, m.holding = nil, holding
	return true, nil
}

// idle is a path whose queues have one packet of 100 bytes waiting.
type idle struct{ steered int }

func (*idle) Change(int, Action) error      { return nil }
func (p *idle) Steer(queue int) error       { p.steered = queue; return nil }
func (*idle) Empty(int) (bool, error)       { return true, nil }
func (*idle) State(int) (QueueState, error) { return QueueState{Packets: 1, Bytes: 100}, nil }

// TestBypassIsNoticed: if the redirect of a vif is gone, or some other program
// filters the vif, Seal seals nothing and Held says so.
func TestBypassIsNoticed(t *testing.T) {
	for _, wrong := range []error{ErrBypassed, ErrForeign} {
		t.Run(wrong.Error(), func(t *testing.T) {
			m, p := &moved{}, &idle{}
			g := newGate(Options{}, m)
			g.vifs = []*vif{newVif(Vif{Name: "vif1.0", Path: p}, g.opts)}
			if err := errors.Join(g.Seal(1), g.Release(1)); err != nil {
				t.Fatal(err)
			}
			m.wrong = wrong
			if held, limit, err := g.Held(); !errors.Is(err, wrong) || held == 0 || limit == 0 {
				t.Errorf("held: %d of %d, %v", held, limit, err)
			}
			if err := g.Seal(2); !errors.Is(err, wrong) || p.steered != 1 {
				t.Errorf("seal: %v, steered to queue %d", err, p.steered)
			}
			names, err := g.Restore()
			if wrong == ErrForeign {
				if !errors.Is(err, wrong) || names != nil {
					t.Errorf("restore: %v, %v", names, err)
				}
				m.wrong = nil
			} else if err != nil || !slices.Equal(names, []string{"vif1.0"}) || !m.holding {
				t.Errorf("restore: %v, %v, as holding: %v", names, err, m.holding)
			}
			if names, err := g.Restore(); err != nil || names != nil {
				t.Errorf("restore with nothing to do: %v, %v", names, err)
			}
			if err := errors.Join(g.Seal(2), g.Release(2)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLaterProgramsAreNoticed: what comes to stand before the gate does not
// lengthen the domain's pause by a look at each seal, but Held says so.
func TestLaterProgramsAreNoticed(t *testing.T) {
	m := &moved{later: ErrForeign}
	g := newGate(Options{}, m)
	g.vifs = []*vif{newVif(Vif{Name: "vif1.0", Path: &idle{}}, g.opts)}
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
	if held, _, err := g.Held(); !errors.Is(err, ErrForeign) || held == 0 {
		t.Errorf("held: %d, %v", held, err)
	}
	g.vifs[0].gone = true
	if _, _, err := g.Held(); err != nil {
		t.Errorf("of a vif that is gone: %v", err)
	}
}

// TestLostPacketsAreTold: packets that never got into a queue count as dropped
// from the first seal on, also if the count begins anew.
func TestLostPacketsAreTold(t *testing.T) {
	m := &moved{lost: 7}
	g := newGate(Options{}, m)
	g.vifs = []*vif{newVif(Vif{Name: "vif1.0", Path: &idle{}}, g.opts)}
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		lost uint64
		want bool
	}{{7, false}, {8, true}, {0, false}, {1, true}} {
		m.lost = step.lost
		if _, _, err := g.Held(); errors.Is(err, ErrDropped) != step.want {
			t.Errorf("%d lost: %v", step.lost, err)
		}
	}
}

// noted is a kernel that keeps in order what is written down, and a path that keeps
// what is done.
type noted struct {
	moved
	idle
	did  []string
	full bool // nothing can be written down
}

func (n *noted) remember(_ *vif, holding bool) error {
	if n.full {
		return errors.New("no room")
	}
	n.did = append(n.did, fmt.Sprint("remember ", holding))
	return nil
}

func (n *noted) Steer(queue int) error {
	n.did = append(n.did, fmt.Sprint("steer to ", queue))
	return nil
}

// TestHoldingIsRememberedFirst: a process that finds a gate holding goes by what is
// written down: that comes before the gate holds anything, or the gate does not.
func TestHoldingIsRememberedFirst(t *testing.T) {
	n := &noted{}
	g := newGate(Options{}, n)
	g.vifs = []*vif{newVif(Vif{Name: "vif1.0", Path: n}, g.opts)}
	if err := g.Seal(1); err != nil || !slices.Equal(n.did, []string{"remember true", "steer to 1"}) {
		t.Errorf("the first seal: %v, %q", err, n.did)
	}
	n = &noted{full: true}
	g = newGate(Options{}, n)
	g.vifs = []*vif{newVif(Vif{Name: "vif1.0", Path: n}, g.opts)}
	if err := g.Seal(1); err == nil || len(n.did) > 0 {
		t.Errorf("nothing can be written down: %v, %q", err, n.did)
	}
}

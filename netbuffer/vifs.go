package netbuffer

import (
	"errors"
	"fmt"
	"slices"
)

// AddVifs gives gates to interfaces that appeared since Open, and returns their
// names. If the gate holds, the new gates hold from the start; packets that the
// interfaces sent before were not held.
func (g *Gate) AddVifs() ([]string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, g.errorf("add vifs: %w", ErrClosed)
	}
	if g.host == nil {
		return nil, nil
	}
	vifs, err := g.host.addVifs(g.vifs, g.holding)
	var names []string
	for _, v := range vifs {
		g.vifs = append(g.vifs, v)
		names = append(names, v.Name)
		v.watch(v.Current, g.events.first())
	}
	g.look() // packets may have come before the watch
	return names, err
}

// Restore redirects the vifs again whose redirects some other program removed,
// and returns their names. What those vifs sent meanwhile was not held.
func (g *Gate) Restore() ([]string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, g.errorf("restore: %w", ErrClosed)
	}
	var names []string
	var errs error
	for _, v := range g.vifs {
		if g.host == nil || v.gone {
			continue
		}
		again, err := g.host.restore(v, g.holding)
		if err != nil {
			errs = errors.Join(errs, g.errorf("restore: %s: %w", v.Name, err))
		} else if again {
			names = append(names, v.Name)
		}
	}
	return names, errs
}

// Holding reports whether packets wait for a release. A gate that Open found
// holding is adopted too, until ReleaseAll.
func (g *Gate) Holding() (holding, adopted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.holding, g.adopted
}

// Missing returns those of the domain's network devices, by number, that have no
// interface behind the gate: the interface was never made, vanished, or is in
// another network namespace. What they send is not held.
func (g *Gate) Missing(devices []int) []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	have := map[int]bool{}
	for _, v := range g.vifs {
		if !v.gone {
			have[numberOf(v.Name)] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(devices), func(n int) bool { return have[n] })
}

// Vifs returns the names of the vifs behind the gate, vanished ones too.
func (g *Gate) Vifs() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := make([]string, len(g.vifs))
	for i, v := range g.vifs {
		names[i] = v.Name
	}
	return names
}

// checkVifs looks for interfaces that appeared or were moved away since the last
// look.
func (g *Gate) checkVifs() error {
	if g.host == nil {
		return nil
	}
	added, err := g.host.added(g.vifs)
	if err != nil {
		return err
	}
	if len(added) > 0 {
		return &NewVifError{added}
	}
	for _, v := range g.vifs {
		if v.moved {
			return g.errorf("%s: %w", v.Name, ErrMoved)
		}
	}
	return nil
}

// each calls check for all vifs that are there.
func (g *Gate) each(check func(host, *vif) error) error {
	var errs error
	for _, v := range g.vifs {
		if g.host == nil || v.gone {
			continue
		}
		if err := check(g.host, v); err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", v.Name, err))
		}
	}
	return errs
}

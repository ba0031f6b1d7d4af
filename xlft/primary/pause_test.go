package primary

import (
	"errors"
	"testing"

	"go.uber.org/zap"

	"xlft/xlft"
)

// counting is a domain whose pauses are counted, as Xen does.
type counting struct {
	xlft.Guest
	pauses int
	busy   bool
}

func (c *counting) Pause() error { c.pauses++; return nil }

func (c *counting) Unpause() error {
	if c.busy {
		return errors.New("busy")
	}
	c.pauses--
	return nil
}

type noStore struct{}

func (noStore) Load(string) (xlft.Ownership, error) { return xlft.Ownership{}, nil }
func (noStore) Save(string, xlft.Ownership) error   { return nil }

// A pause that could not be undone is still there when the next one is asked for: one
// unpause lets the domain run.
func TestPausedOnce(t *testing.T) {
	g := &counting{}
	s := &Session{Log: zap.NewNop(), Guest: g, Store: noStore{}}
	s.init()
	s.pause()
	g.busy = true
	s.unpause(once)
	s.pause()
	g.busy = false
	s.unpause(once)
	if g.pauses != 0 {
		t.Errorf("%d pauses are left", g.pauses)
	}
}

package primary

import (
	"errors"
	"testing"

	"xlft/xlft"
)

// badStore fails to load or to save.
type badStore struct{ load, save error }

func (b badStore) Load(string) (xlft.Ownership, error) { return xlft.Ownership{}, b.load }
func (b badStore) Save(string, xlft.Ownership) error   { return b.save }

// A session that could not begin has no outcome: it has decided nothing, and
// whoever finds what an earlier protector left has to try again.
func TestNeverBegan(t *testing.T) {
	why := errors.New("the disk fails")
	for _, store := range []badStore{{load: why}, {save: why}} {
		s := &Session{Domain: "web1", Store: store}
		if err := s.Run(t.Context()); !errors.Is(err, why) {
			t.Errorf("%v", err)
		}
		if outcome, err := s.Result(); outcome != "" || !errors.Is(err, why) {
			t.Errorf("outcome %q, %v", outcome, err)
		}
	}
}

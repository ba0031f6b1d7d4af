package preflight

import (
	"errors"
	"testing"

	"xlft/xlft"
)

// A domain that stands still is refused, unless a protector of this run of it left it so.
func TestStanding(t *testing.T) {
	left := xlft.Ownership{Role: xlft.HostPrimary, Begun: true, Paused: true, Instance: "boot/7"}
	old := left
	old.Instance = "earlier boot/7"
	for _, c := range []struct {
		what   string
		st     xlft.GuestState
		paused bool
		o      xlft.Ownership
		unread error
		want   bool
	}{
		{"it runs", xlft.GuestRuns, false, xlft.Ownership{}, nil, false},
		{"paused by somebody", xlft.GuestRuns, true, xlft.Ownership{}, nil, true},
		{"paused by its protector", xlft.GuestRuns, true, left, nil, false},
		{"paused by somebody, its protector paused an earlier run", xlft.GuestRuns, true, old, nil, true},
		{"paused, and no record can be read", xlft.GuestRuns, true, xlft.Ownership{}, errors.New("bad"), false},
		{"suspended by somebody", xlft.GuestSuspendedByOther, false, xlft.Ownership{}, nil, true},
		{"suspended by its protector", xlft.GuestSuspendedByOther, false, left, nil, false},
		{"suspended by somebody, its protector died in an earlier run", xlft.GuestSuspendedByOther, false, old, nil, true},
		{"ended", xlft.GuestOver, false, left, nil, true},
	} {
		if p := standing("web1", c.st, "", c.paused, "boot/7", c.o, c.unread); (p != nil) != c.want {
			t.Errorf("%s: %+v", c.what, p)
		}
	}
}

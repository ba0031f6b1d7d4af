package xlft_test

import (
	"errors"
	"testing"

	"xlft/xlft"
)

// A copy is overwritten if the other host's comes from it, or if nothing is known
// of it, and not otherwise.
func TestMayOverwrite(t *testing.T) {
	first := xlft.DataGen{}.Next()
	alone, taken := first.Next(), first.Next() // a split brain: both ran on
	later := taken.Next().Next()
	var long xlft.DataGen
	for long = taken; len(long.Past) < 64; {
		long = long.Next()
	}
	for _, c := range []struct {
		what  string
		from  xlft.DataGen
		state xlft.DiskState
		has   xlft.DataGen
		want  error
	}{
		{"nothing is known", first, "", xlft.DataGen{}, nil},
		{"a record of before there were generations", first, xlft.UpToDate, xlft.DataGen{}, nil},
		{"a copy of it", first, xlft.Consistent, first.Copied(), nil},
		{"an older copy", later, xlft.Consistent, first.Copied(), nil},
		{"the disk that was taken over", taken, "", first, nil},
		{"the disk that was handed on", taken, xlft.Outdated, first, nil},
		{"a first copy that was not completed", first, xlft.Inconsistent, later, nil},
		{"the primary of before a takeover is back", first, xlft.UpToDate, taken, xlft.ErrNewerHere},
		{"and the domain was taken over again", first, xlft.UpToDate, later, xlft.ErrNewerHere},
		{"a newer copy, which no domain runs from", first, xlft.Consistent, later, xlft.ErrNewerHere},
		{"both ran on", alone, xlft.UpToDate, taken, xlft.ErrDiverged},
		{"both ran on, and one was given up on", taken, xlft.Outdated, alone, xlft.ErrDiverged},
		{"another domain's disk", first, xlft.UpToDate, xlft.DataGen{}.Next(), xlft.ErrDiverged},
		{"far behind", long, xlft.Consistent, first, nil},
	} {
		if err := c.from.MayOverwrite(xlft.DiskRecord{State: c.state, Data: c.has}); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
}

package xlft

import "testing"

func TestSameUUID(t *testing.T) {
	const u = "0a010203-1000-ff07-0809-00000000000f"
	for v, want := range map[string]bool{
		u: true, "a123-100-ff7-89-00000f": true,
		"0a010203-1000-ff07-0809-00000000000e": false, "a123-100-ff7-89-00000e": false, "": false, "u": false,
		"0a010203-1000-ff07-0809-0000000000ff": false,
	} {
		if SameUUID(u, v) != want || SameUUID(v, u) != want {
			t.Errorf("%q: want %v", v, want)
		}
	}
}

package netbuffer

import "testing"

func TestOwnerOf(t *testing.T) {
	for name, want := range map[string][2]string{
		"vif3.0":     {"3", "0"},
		"vif3.0-emu": {"3", "0e"},
		"vif31.12":   {"31", "12"},
		"vif3":       {"", ""},
		"xvif3.0":    {"", ""},
		"vif3.0-x":   {"", ""},
	} {
		if domid, vif := ownerOf(name); domid != want[0] || vif != want[1] {
			t.Errorf("%s: got %q, %q", name, domid, vif)
		}
	}
}

func TestAlias(t *testing.T) {
	for _, n := range []alias{{"vif3.0", true, true}, {"vif3.0", false, false}, {"vif3.0", true, false}, {"vif3.0", false, true}} {
		if got := aliasOf(n.String()); got != n {
			t.Errorf("got %+v, want %+v", got, n)
		}
	}
}

// TestAliasText: a running gate of an earlier version is found by this text.
func TestAliasText(t *testing.T) {
	for want, a := range map[string]alias{
		"xlft gate of vif3.0":                      {vif: "vif3.0"},
		"xlft gate of vif3.0, holding":             {vif: "vif3.0", holding: true},
		"xlft gate of vif3.0, own clsact, holding": {vif: "vif3.0", holding: true, ownQdisc: true},
	} {
		if got := a.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := aliasOf(""); got != (alias{}) {
		t.Errorf("no alias: got %+v", got)
	}
}

func TestIfbNames(t *testing.T) {
	for _, tt := range []struct {
		domid uint32
		vif   string
		index int
		want  string
	}{
		{3, "vif3.0", 7, "xlft3.0"},
		{3, "vif3.0-emu", 7, "xlft3.0e"},
		{32751, "vif32751.9999", 7, "xlft32751.9999"},
		{3, "custom", 0x1f, "xlft3.x1f"},
	} {
		got, err := ifbFor(tt.domid, tt.vif, tt.index)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.vif, got, err, tt.want)
		}
		for queue, want := range []string{tt.want + "a", tt.want + "b"} {
			if s := suffix(got, queue); s != want {
				t.Errorf("%s, queue %d: got %q, want %q", tt.vif, queue, s, want)
			}
			if d := domainOf(suffix(got, queue)); d == "" || "xlft"+d+"." != want[:len(d)+5] {
				t.Errorf("%s: belongs to domain %q", want, d)
			}
		}
	}
	if got, err := ifbFor(4294967295, "custom", 0x7fffffff); err == nil {
		t.Errorf("too long: got %q", got)
	}
	for _, name := range []string{"", "ifb0", "xlft3.0", "xlft3.0c", "xlftprobe", "vif3.0"} {
		if d := domainOf(name); d != "" {
			t.Errorf("%q belongs to domain %s", name, d)
		}
	}
}

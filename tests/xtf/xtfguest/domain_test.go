//go:build linux

package xtfguest_test

import (
	"slices"
	"testing"

	"xlft/tests/xtf/xtfguest"
)

func TestWakes(t *testing.T) {
	got := xtfguest.Wakes(`--- Xen Test Framework ---
512 pages, 200 steps a second
resumed suspend 1 count 552 sum be3ba0f26dd339eb
count 1000 sum d2f43edd39d2d2b0
restored suspend 2 count 1170 sum 050b5368980bb829
resumed suspend 3 cou`)
	want := []xtfguest.Wake{
		{Suspend: 1, State: xtfguest.State{Count: 552, Sum: 0xbe3ba0f26dd339eb}},
		{Suspend: 2, Restored: true, State: xtfguest.State{Count: 1170, Sum: 0x050b5368980bb829}},
	}
	if !slices.Equal(got, want) {
		t.Errorf("wakes are %+v, want %+v", got, want)
	}
}

func TestRender(t *testing.T) {
	g := xtfguest.Guest{Name: "c1", Test: "counter", Memory: 24, Options: []string{"pages=100", "rate=0"},
		Config: "on_poweroff = \"preserve\"\n"}
	got := g.Render("name = \"test-pvh64-counter\"\ntype = \"pvh\"\nkernel = \"/here\"\nmemory = 16\n")
	want := `type = "pvh"
name = "c1"
kernel = "/var/lib/xlft-xtf/test-pvh64-counter"
extra = "pages=100 rate=0"
memory = 24
on_poweroff = "preserve"
`
	if got != want {
		t.Errorf("rendered\n%swant\n%s", got, want)
	}
}

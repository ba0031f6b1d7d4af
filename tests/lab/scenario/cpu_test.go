//go:build lab

package scenario

import (
	"regexp"
	"strings"
	"testing"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// The backup's processor lacks a feature that the domain was told of. The domain is refused, with the line for its
// configuration that hides the feature; with that line it is protected and taken over.
func TestLesserProcessor(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	fx.install(ft.Usual)
	to := fx.backup()
	to.Must(t, "sync")
	check(t, to.BootLacking(within(t, patience), "avx2"))
	fx.boot()

	msg := fx.refused(fx.home, "avx2", "xl", "ft-start", fx.guest.Name)
	if strings.Count(msg, "B: ") != 1 {
		t.Errorf("refused for more than the processor:\n%s", msg)
	}
	mask := regexp.MustCompile(`cpuid = \[.*?\]`).FindString(msg)
	if mask == "" {
		t.Fatalf("no line for the configuration in:\n%s", msg)
	}
	fx.home.Must(t, "xl", "destroy", fx.guest.Name)
	fx.guest.Config = mask + "\n"
	fx.boot()
	fx.protect()
	before := fx.get()
	from := fx.home
	from.Kill()
	fx.awaitTakeover(to)
	fx.client = fx.dial()
	if s := fx.get(); s != before {
		t.Errorf("state %+v, was %+v", s, before)
	}
	fx.over = true
}

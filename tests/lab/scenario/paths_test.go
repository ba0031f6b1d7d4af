//go:build lab

package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// One of two paths between the hosts breaks, the preferred one, and then the other: the guest stays where it is, and is
// protected again by the path that is left. Who looks at the status sees which path is broken. There is no arbiter but
// the hosts' own words: without the second path both would run the guest.
func TestPathBreaks(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	check(t, fx.OpenSecond())
	t.Cleanup(func() { check(t, fx.CloseSecond()) })
	s := ft.Usual
	s.Paths = true
	fx.install(s)
	fx.boot()
	fx.protect()
	lan, second := fmt.Sprint(fx.backup().IPv4(), ":7789"), fmt.Sprint(fx.backup().Second(), ":7789")
	by := func(address string) func(ft.Row) bool {
		return func(r ft.Row) bool { return r.Protected && r.Primary.PeerAddress == address }
	}
	fx.await(fx.home, "protected by the preferred path", by(lan))
	client := fx.call(200 * time.Millisecond)

	breaks := func(what string, broken, whole string, cut, mend func() error) {
		t.Helper()
		check(t, cut())
		at := time.Now()
		fx.await(fx.home, "protected by "+whole, by(whole))
		again := time.Since(at)
		r := fx.await(fx.home, "it shows which path is broken", func(r ft.Row) bool {
			return len(r.Paths) == 2 && strings.Contains(fmt.Sprint(r.Paths), "{B "+broken+" false") && strings.Contains(fmt.Sprint(r.Paths), "{B "+whole+" true")
		})
		t.Logf("%s: protected again after %v by %s; %v", what, round(again), r.Primary.PeerAddress, r.Paths)
		fx.expectLog(fx.home, "a path to a peer is broken")
		fx.awaitDomains(fx.home, fx.guest.Name)
		check(t, mend())
		fx.await(fx.home, "both are whole", func(r ft.Row) bool { return !strings.Contains(fmt.Sprint(r.Paths), "false") && len(r.Paths) == 2 })
	}
	breaks("the LAN between the hosts broke", lan, second, fx.SplitHosts, fx.JoinHosts)
	breaks("the second path broke", second, lan, fx.CloseSecond, fx.OpenSecond)
	client.end()
}

// A host that is cut off from the other one, and from the router, claims nothing, though its arbiter would let both: the
// other host takes over, and when the first is back it gives its copy up.
func TestCutOffFromOutside(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	s.Ping = lab.ClientIP4.String()
	fx.install(s)
	fx.boot()
	fx.protect()
	from, to := fx.home, fx.backup()
	client := fx.call(200 * time.Millisecond)
	client.await(5)
	check(t, from.CutLAN())
	fx.awaitTakeover(to)
	fx.await(from, "it waits, and says for whom", func(r ft.Row) bool {
		return (r.State == "blocked" || r.State == "arbitrating") && strings.Contains(r.Primary.LastError, "no answer to a ping")
	})
	check(t, from.RestoreLAN())
	fx.awaitDomains(from)
	client.end()
}

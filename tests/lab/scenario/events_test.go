//go:build lab

package scenario

import (
	"encoding/json"
	"testing"

	"xlft/tests/lab"
)

// evtchn's own tests in a dom0 with a guest, on real event channels.
func TestEvtchnInDom0(t *testing.T) {
	fx := unprotected(t)
	fx.inDom0(fx.home, "evtchn")
	fx.get()
}

// What "xlft events" says of a guest that answers questions, and of one that is gone.
func TestEvents(t *testing.T) {
	fx := unprotected(t)
	k := fx.talk(20)
	out := fx.home.Must(t, "xlft", "events", "--json", "--interval", "3s", fx.guest.Name)
	fx.complete(k.end())
	var r struct {
		Domid int
		Ports []struct {
			Kind, Use string
			Rate      *float64 `json:"events_per_second"`
		}
		Devices []struct {
			Device string
			Rate   float64 `json:"events_per_second"`
		}
	}
	check(t, json.Unmarshal([]byte(out), &r))
	if r.Domid != fx.domid() {
		t.Errorf("domain %d, want %d", r.Domid, fx.domid())
	}
	kinds, rates := map[string]string{}, map[string]float64{}
	for _, p := range r.Ports {
		kinds[p.Use] = p.Kind
		if p.Rate != nil {
			rates[p.Use] = *p.Rate
		}
	}
	for use, kind := range map[string]string{"xenstore": "interdomain", "console": "interdomain", "timer": "virq"} {
		if kinds[use] != kind {
			t.Errorf("%s is %q", use, kinds[use])
		}
	}
	t.Log(fx.home.Must(t, "xlft", "events", fx.guest.Name))
	var counted float64
	for use, n := range rates {
		if len(use) > 4 && use[:4] == "vif/" {
			counted += n
		}
	}
	if counted < 5 || len(r.Devices) == 0 { // 20 answers a second, some of them together
		t.Errorf("the guest sends 20 packets a second, and its ports count %v, its devices %v", rates, r.Devices)
	}
	fx.refused(fx.home, "no such domain", "xlft", "events", "nobody")
}

// Protections, one after the other, use the same port of the domain: it does not run out of ports.
func TestSuspendPort(t *testing.T) {
	lab.Long(t)
	fx := unprotected(t)
	ports := func() int {
		var r struct{ Ports []struct{} }
		check(t, json.Unmarshal([]byte(fx.home.Must(t, "xlft", "events", "--json", "--interval", "100ms", fx.guest.Name)), &r))
		return len(r.Ports)
	}
	fx.protect()
	n := ports()
	fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
	fx.protect()
	if now := ports(); now != n {
		t.Errorf("the domain has %d ports, it had %d", now, n)
	}
	fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
	fx.get()
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"xlft/evtchn"
	"xlft/xlft/internal/xen"
)

func TestEventReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts := []evtchn.Counts{
			{Devices: map[string]uint32{"vif/0": 1<<32 - 10, "vif/1": 5, "vbd/51712": 40, "vbd/51728": 1000}, Queues: map[evtchn.Use]uint32{{Device: "vif/1", Role: "tx"}: 5}},
			{Devices: map[string]uint32{"vif/0": 10, "vif/1": 9, "vbd/51712": 44, "vbd/51728": 6}, Queues: map[evtchn.Use]uint32{{Device: "vif/1", Role: "tx"}: 8}},
		}
		gone := false
		w := eventWatcher{
			domain: xen.Domain{Name: "web1", ID: 7},
			ports: func(uint32) ([]evtchn.State, error) {
				if gone {
					return nil, evtchn.ErrNoDomain
				}
				return []evtchn.State{
					{Port: 1, Kind: evtchn.Interdomain, Domain: 0, RemotePort: 40},
					{Port: 3, Kind: evtchn.VIRQ, VCPU: 1},
					{Port: 4, Kind: evtchn.IPI},
					{Port: 9, Kind: evtchn.Interdomain, RemotePort: 41},
					{Port: 10, Kind: evtchn.Interdomain, RemotePort: 42},
					{Port: 11, Kind: evtchn.Interdomain, RemotePort: 43},
					{Port: 15, Kind: evtchn.Interdomain, RemotePort: 44},
					{Port: 16, Kind: evtchn.Interdomain, RemotePort: 45},
					{Port: 17, Kind: evtchn.Unbound, Domain: 2},
				}, nil
			},
			uses: func(uint32) map[evtchn.Port]evtchn.Use {
				return map[evtchn.Port]evtchn.Use{
					1: {Device: "xenstore", Queue: -1}, 9: {Device: "vif/0", Queue: -1}, 10: {Device: "vif/1", Role: "tx"},
					11: {Device: "vif/1", Role: "rx"}, 15: {Device: "vbd/51712", Queue: -1}, 16: {Device: "vbd/51728", Queue: -1},
				}
			},
			count: func(uint32) (evtchn.Counts, error) { c := counts[0]; counts = counts[1:]; return c, nil },
		}
		if err := w.begin(); err != nil {
			t.Fatal(err)
		}
		r, err := w.next(t.Context(), 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := r.print(&b, false); err != nil {
			t.Fatal(err)
		}
		// vif/0's count went past 32 bits; vbd/51728 was connected anew.
		const want = `web1, domain 7: events in 2.0 s
PORT  KIND         VCPU  REMOTE  EVENTS/S  USE
1     interdomain  0     0:40    -         xenstore
3     virq         1     -       -         timer
4     ipi          0     -       -         
9     interdomain  0     0:41    10.0      vif/0
10    interdomain  0     0:42    1.5       vif/1 queue 0 tx
11    interdomain  0     0:43    -         vif/1 queue 0 rx
15    interdomain  0     0:44    2.0       vbd/51712
16    interdomain  0     0:45    3.0       vbd/51728
17    unbound      0     2       -         

DEVICE     EVENTS/S
vbd/51712  2.0
vbd/51728  3.0
vif/0      10.0
vif/1      2.0
`
		if b.String() != want {
			t.Errorf("printed\n%s\nwant\n%s", b.String(), want)
		}
		j, err := json.Marshal(r.Ports[4])
		if err != nil || string(j) != `{"port":10,"kind":"interdomain","vcpu":0,"use":"vif/1 queue 0 tx","remote":{"domid":0,"port":42},"events_per_second":1.5}` {
			t.Errorf("%s, %v", j, err)
		}

		// The domain ends, and the user does.
		gone, counts = true, []evtchn.Counts{{}}
		if _, err := w.next(t.Context(), time.Second); err == nil || !strings.Contains(err.Error(), "the domain has ended") {
			t.Errorf("a domain that is gone: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.next(ctx, time.Hour); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
	})
}

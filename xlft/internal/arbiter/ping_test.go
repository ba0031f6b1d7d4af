package arbiter

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A claim that is taken back while the outside is asked has done nothing yet.
func TestWithdrawnWhileOutsideIsAsked(t *testing.T) {
	for _, side := range sides {
		t.Run(string(side), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				withdrawn := make(chan struct{})
				a := None{Asker: Asker{Log: zap.NewNop(), Timeout: 2 * time.Second,
					Ask: func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
						return wire.OwnerResult{}, errors.New("silent")
					},
					Outside: func(ctx context.Context) error {
						select {
						case <-time.After(1500 * time.Millisecond):
							return nil
						case <-ctx.Done():
							return ctx.Err()
						}
					}}}
				go func() {
					time.Sleep(time.Second)
					close(withdrawn)
				}()
				begun := time.Now()
				won, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: side, Peer: "beta", Withdrawn: withdrawn})
				if won || !errors.Is(err, xlft.ErrWithdrawn) {
					t.Errorf("%s: won %v, %v after %v", side, won, err, time.Since(begun))
				}
			})
		})
	}
}

// A backup that is told to run the domain needs no answer from the outside: its primary has
// suspended the domain.
func TestHandedIsNotAskedOutside(t *testing.T) {
	cut := errors.New("no answer from the router")
	touched := false
	ask := Asker{Log: zap.NewNop(), Timeout: 10 * time.Millisecond, Outside: func(context.Context) error { return cut },
		Ask: func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
			return wire.OwnerResult{}, errors.New("silent")
		}}
	for _, a := range []xlft.Arbiter{None{Asker: ask}, &Ledger{Asker: ask, Kind: "etcd", Host: "alpha", Register: touchy{nil, &touched}}} {
		_, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: xlft.Backup, Peer: "beta", Handed: true})
		if errors.Is(err, cut) {
			t.Errorf("%v: %v", a, err)
		}
	}
}

// Who is to ping before it claims says beforehand that it could not, with every arbiter.
func TestNoneChecksOutside(t *testing.T) {
	cut := errors.New("no answer from the router")
	var a xlft.Arbiter = None{Asker: Asker{Outside: func(context.Context) error { return cut }}}
	c, ok := a.(xlft.ArbiterChecker)
	if !ok {
		t.Fatal("none has no Check: a router that is gone is not known before it matters")
	}
	if err := c.Check(t.Context(), "beta"); !errors.Is(err, cut) {
		t.Error(err)
	}
}

// Only the network between the hosts breaks. The runner's router answers it late (a cold ARP
// entry, a bridge that learns), the backup's at once: the runner comes first all the same.
func TestHeadStartOutlastsThePing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := make(chan string, 2)
		side := func(host, peer string, s xlft.Side, router time.Duration) {
			c := &config.Config{Name: host, Peers: map[string]config.Peer{peer: {Name: peer, Fence: &config.Fence{Levels: [][]config.FenceAgent{{{Agent: "off"}}}}}}}
			c.Arbiter.Type, c.Arbiter.FenceAfter, c.Default.FailureTimeout, c.Arbiter.Ping = "fence", 3*time.Second, time.Second, []netip.Addr{netip.MustParseAddr("192.0.2.9")}
			a := New(c, "test", func(config.Peer) wire.Dialer { return nil }, zap.NewNop()).(*Fence)
			a.Ask = func(ctx context.Context, _ string, _ wire.OwnerQuery) (wire.OwnerResult, error) {
				<-ctx.Done()
				return wire.OwnerResult{}, ctx.Err()
			}
			a.Outside = func(context.Context) error { time.Sleep(router); return nil } // within 2*failure_timeout
			a.Agent = func(_ context.Context, _ config.FenceAgent, action string) ([]byte, int, error) {
				if action == "off" {
					first <- host
				}
				return []byte(`<resource-agent><actions><action name="off"/><action name="status"/></actions></resource-agent>`), map[string]int{"status": 2}[action], nil
			}
			a.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: s, Peer: peer})
		}
		go side("beta", "alpha", xlft.Primary, 1500*time.Millisecond)
		go side("alpha", "beta", xlft.Backup, 0)
		time.Sleep(20 * time.Second)
		select {
		case first <- "nobody":
		default:
		}
		if f := <-first; f != "beta" {
			t.Errorf("%q shoots first: the host that runs the domain is shot, which reaches the outside", f)
		}
	})
}

package arbiter

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A touchy register, or agent, is not to be touched.
type touchy struct {
	Register
	touched *bool
}

func (r touchy) First(context.Context, Key, []byte) ([]byte, string, error) {
	*r.touched = true
	return nil, "", errors.New("touched")
}

func (r touchy) Probe(context.Context) (string, error) { return "one", nil }

// A host that is cut off from the outside claims nothing with any arbiter, and what the
// other host says of the domain counts all the same.
func TestCutOff(t *testing.T) {
	cut := errors.New("no answer from the router")
	for _, c := range []struct {
		name string
		of   func(Asker, *bool) xlft.Arbiter
		asks bool // a backup that is told to run the domain needs no claim
	}{
		{"none", func(a Asker, _ *bool) xlft.Arbiter { return None{Asker: a} }, false},
		{"fence", func(a Asker, touched *bool) xlft.Arbiter {
			return &Fence{Asker: a, Peers: map[string]config.Peer{"beta": {Fence: &config.Fence{Levels: [][]config.FenceAgent{{{Agent: "off"}}}}}},
				Agent: func(context.Context, config.FenceAgent, string) ([]byte, int, error) {
					*touched = true
					return nil, 0, nil
				}}
		}, true},
		{"ledger", func(a Asker, touched *bool) xlft.Arbiter {
			return &Ledger{Asker: a, Kind: "etcd", Host: "alpha", Register: touchy{nil, touched}}
		}, false},
	} {
		for _, side := range sides {
			t.Run(c.name+"/"+string(side), func(t *testing.T) {
				touched := false
				var gone atomic.Bool // the backup says that it gave the domain up; before, nothing
				a := c.of(Asker{
					Log: zap.NewNop(), Timeout: 10 * time.Millisecond, Outside: func(context.Context) error { return cut },
					Ask: func(context.Context, string, wire.OwnerQuery) (wire.OwnerResult, error) {
						if gone.Load() {
							return wire.OwnerResult{Role: wire.RoleNone}, nil
						}
						return wire.OwnerResult{}, errors.New("silent")
					},
				}, &touched)
				claim := xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: side, Peer: "beta"}
				if won, err := a.Claim(t.Context(), claim); won || !errors.Is(err, cut) || touched {
					t.Errorf("claims: %v, %v, touched %v", won, err, touched)
				}
				if checker, ok := a.(xlft.ArbiterChecker); ok {
					if err := checker.Check(t.Context(), "beta"); !errors.Is(err, cut) {
						t.Errorf("Check: %v", err)
					}
				}
				if side == xlft.Primary {
					gone.Store(true)
					if won, err := a.Claim(t.Context(), claim); !won || err != nil {
						t.Errorf("the backup gives the domain up: %v, %v", won, err)
					}
				}
				if claim.Handed = true; side == xlft.Backup && c.asks {
					if won, err := a.Claim(t.Context(), claim); !won || err != nil {
						t.Errorf("the primary hands the domain over: %v, %v", won, err)
					}
				}
			})
		}
	}
}

package arbiter

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// A world is two hosts, each with its arbiter, for the contract that every
// arbiter keeps.
type world struct {
	arbiters map[xlft.Side]xlft.Arbiter

	mu   sync.Mutex
	off  map[xlft.Side]bool // the host has no power: what it does has no effect
	deaf bool               // nobody can be reached, neither arbiter nor agent
	asks bool               // who wins, an operator says: nobody does by a claim
}

// claim is a host's claim; false for one that has no power any more.
func (w *world) claim(side xlft.Side, handed bool) (won bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	other := map[xlft.Side]string{xlft.Primary: "backup", xlft.Backup: "primary"}[side]
	won, err = w.arbiters[side].Claim(ctx, xlft.Claim{Domain: "web1", Generation: 3, Side: side, Peer: other, Handed: handed})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.off[side] {
		return false, nil
	}
	return won, err
}

// fences is a world whose hosts can power each other off, which takes time.
func fences() *world {
	w := &world{arbiters: map[xlft.Side]xlft.Arbiter{}, off: map[xlft.Side]bool{}}
	peers := map[string]config.Peer{}
	for _, s := range []xlft.Side{xlft.Primary, xlft.Backup} {
		peers[string(s)] = config.Peer{Name: string(s), Fence: &config.Fence{Options: map[string]string{"plug": string(s)}}}
	}
	for i, s := range []xlft.Side{xlft.Primary, xlft.Backup} {
		w.arbiters[s] = &Fence{
			Peers: peers,
			Asker: Asker{Log: zap.NewNop(), Timeout: time.Second, Ask: func(ctx context.Context, _ string, _ wire.OwnerQuery) (wire.OwnerResult, error) {
				<-ctx.Done()
				return wire.OwnerResult{}, ctx.Err()
			}},
			Agent: func(ctx context.Context, f config.Fence, action string) (int, error) {
				time.Sleep(time.Duration(2+i) * time.Second)
				w.mu.Lock()
				defer w.mu.Unlock()
				switch {
				case w.deaf:
					return 1, errors.New("no route to host")
				case w.off[s]: // its own power went first
					return 1, errors.New("no power")
				}
				w.off[xlft.Side(f.Options["plug"])] = true
				return 0, nil
			},
		}
	}
	return w
}

// operators is a world in which an operator decides.
func operators() *world {
	w := fences()
	w.asks = true
	for s, a := range w.arbiters {
		w.arbiters[s] = Manual{a.(*Fence).Asker}
	}
	return w
}

// TestContract is what the machines rest on, of any arbiter.
func TestContract(t *testing.T) {
	for name, newWorld := range map[string]func() *world{"fence": fences, "manual": operators} {
		run := func(what string, f func(t *testing.T, w *world)) {
			t.Run(name+"/"+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f(t, newWorld()) })
			})
		}
		run("one of two that claim at once", func(t *testing.T, w *world) {
			var wg sync.WaitGroup
			won := map[xlft.Side]bool{}
			var mu sync.Mutex
			for _, s := range []xlft.Side{xlft.Primary, xlft.Backup} {
				wg.Go(func() {
					ok, _ := w.claim(s, false)
					mu.Lock()
					defer mu.Unlock()
					won[s] = ok
				})
			}
			wg.Wait()
			if won[xlft.Primary] == won[xlft.Backup] && (won[xlft.Primary] || !w.asks) {
				t.Errorf("won: %v, want exactly one", won)
			}
		})
		run("the same answer again", func(t *testing.T, w *world) {
			for range 3 {
				if won, err := w.claim(xlft.Backup, false); won == w.asks || (err == nil) == w.asks {
					t.Errorf("%v, %v, want the same each time: won, unless an operator decides", won, err)
				}
			}
			if won, _ := w.claim(xlft.Primary, false); won {
				t.Error("the other side wins the same generation")
			}
		})
		run("unreachable is an error, and decides nothing", func(t *testing.T, w *world) {
			w.deaf = true
			for _, s := range []xlft.Side{xlft.Primary, xlft.Backup} {
				if won, err := w.claim(s, false); won || err == nil {
					t.Errorf("%s: %v, %v, want an error", s, won, err)
				}
			}
			w.deaf = false
			if won, err := w.claim(xlft.Primary, false); won == w.asks || (err == nil) == w.asks {
				t.Errorf("reachable again: %v, %v", won, err)
			}
		})
		run("a domain that was handed over is the backup's", func(t *testing.T, w *world) {
			if won, err := w.claim(xlft.Backup, true); !won || err != nil {
				t.Errorf("backup: %v, %v", won, err)
			}
			if won, _ := w.claim(xlft.Primary, true); won {
				t.Error("the primary takes back what it handed over")
			}
			if w.off[xlft.Primary] || w.off[xlft.Backup] {
				t.Error("a host was fenced")
			}
		})
	}
}

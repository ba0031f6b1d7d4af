package arbiter

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// With arbiter none a backup takes over at once, unless there are several paths to its
// primary's host: then that is asked first, and nobody takes over from a host that answers.
func TestOnePathOfSeveral(t *testing.T) {
	for _, c := range []struct {
		name  string
		paths bool
		says  wire.Role // "": nothing
		won   bool
		after time.Duration
	}{
		{"one path", false, wire.RoleRunning, true, 0},
		{"it runs the domain", true, wire.RoleRunning, false, 0},
		{"it has lost the domain", true, wire.RoleNone, true, 0},
		{"it is dead", true, "", true, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := None{Asker{Log: zap.NewNop(), Timeout: 2 * time.Second, Ask: func(ctx context.Context, _ string, q wire.OwnerQuery) (wire.OwnerResult, error) {
					if c.says == "" {
						<-ctx.Done()
						return wire.OwnerResult{}, errors.New("no answer")
					}
					return wire.OwnerResult{Role: c.says}, nil
				}}, map[string]bool{"alpha": c.paths}}
				begun := time.Now()
				won, err := a.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: xlft.Backup, Peer: "alpha"})
				if won != c.won || (err == nil) != c.won || time.Since(begun) != c.after {
					t.Errorf("%v, %v after %v, want %v after %v", won, err, time.Since(begun), c.won, c.after)
				}
			})
		})
	}
}

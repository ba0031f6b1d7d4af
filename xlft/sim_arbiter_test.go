package xlft_test

import (
	"context"
	"fmt"

	"xlft/tests/simxen"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
)

// oneAgent is a fence of one agent.
var oneAgent = &config.Fence{Levels: [][]config.FenceAgent{{{}}}}

// agentOf is an agent that takes a host's power with off.
func agentOf(h *simxen.Host, off func() error) func(context.Context, config.FenceAgent, string) ([]byte, int, error) {
	return func(_ context.Context, _ config.FenceAgent, action string) ([]byte, int, error) {
		switch {
		case action == "metadata":
			return []byte(simxen.FenceMetadata), 0, nil
		case action == "off":
			if err := off(); err != nil {
				return nil, 1, err
			}
		case h.Down():
			return nil, 2, nil
		}
		return nil, 0, nil
	}
}

// A register is the simulated arbiter as a process reaches it, for the product's Ledger.
type register struct {
	p *simxen.Process
	a *simxen.Arbiter
}

func (r register) First(_ context.Context, k arbiter.Key, value []byte) (there []byte, id string, err error) {
	there, err = r.p.First(r.a, fmt.Sprint(k), value)
	return there, "simulated", err
}

func (r register) Probe(context.Context) (string, error) { return "simulated", nil }

func (r register) Where(k arbiter.Key) (place, remove string) { return fmt.Sprint(k), "rm" }

// ledger is the product's Ledger, of a process.
func ledger(p *simxen.Process, a *simxen.Arbiter, ask arbiter.Asker) *arbiter.Ledger {
	return &arbiter.Ledger{Asker: ask, Kind: "ledger", Host: p.Host(), Register: register{p, a}}
}

package xlft_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// What a word is refused for, by what the other hosts answer.
func TestRefuses(t *testing.T) {
	answer := func(r wire.OwnerResult, err error) xlft.Answer {
		return xlft.AnswerOf(context.Background(), "beta", func(context.Context) (wire.OwnerResult, error) { return r, err })
	}
	silent := answer(wire.OwnerResult{}, errors.New("i/o timeout"))
	deaf := answer(wire.OwnerResult{}, fmt.Errorf("dial beta: %w", syscall.ECONNREFUSED))
	blind := answer(wire.OwnerResult{}, &wire.Refusal{Code: wire.CodeInternal, Reason: "input/output error"})
	runs := answer(wire.OwnerResult{Role: wire.RoleRunning, Generation: 4}, nil)
	undecided := answer(wire.OwnerResult{Role: wire.RoleReplica}, nil)
	none := answer(wire.OwnerResult{Role: wire.RoleNone}, nil)
	const ok = ""
	for _, c := range []struct {
		name                        string
		shared                      bool
		answers                     []xlft.Answer
		peerIsOff, takeOver, giveUp string
	}{
		{"silent", false, []xlft.Answer{silent}, ok, ok, ok},
		{"silent, shared storage", true, []xlft.Answer{silent}, ok, "take its power, then --peer-is-off", ok},
		{"no receiver", false, []xlft.Answer{deaf}, "beta is not off", ok, ok},
		{"no receiver, shared storage", true, []xlft.Answer{deaf}, "beta is not off", "take its power, then --peer-is-off", ok},
		{"refuses", false, []xlft.Answer{blind}, "beta is not off", "beta has power, and can't say what it knows", ok},
		{"runs it", false, []xlft.Answer{runs}, "beta answers that it has web1", "beta answers that it has web1", ok},
		{"undecided", false, []xlft.Answer{undecided}, "beta is not off", `decide there: "xl ft-resolve web1" on beta`, ok},
		{"has none", false, []xlft.Answer{none}, "beta is not off", ok, "the copy here is the only one"},
		{"has none, shared storage", true, []xlft.Answer{none}, "beta is not off", ok, "the copy here is the only one"},
		{"one silent, one has none", false, []xlft.Answer{silent, none}, ok, ok, ok},
		{"one silent, one runs it", false, []xlft.Answer{silent, runs}, "answers that it has web1", "answers that it has web1", ok},
		{"one silent, one undecided", false, []xlft.Answer{silent, undecided}, "is not off", "decide there", ok},
		{"nobody can be asked", false, nil, ok, ok, ok},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := xlft.Decision{Domain: "web1", Peer: "beta", Shared: c.shared, Answers: c.answers}
			// The command judges by what the daemon sent.
			b, err := json.Marshal(d)
			var sent xlft.Decision
			if err == nil {
				err = json.Unmarshal(b, &sent)
			}
			if err != nil {
				t.Fatal(err)
			}
			for w, want := range map[xlft.Word]string{xlft.PeerIsOff: c.peerIsOff, xlft.TakeOver: c.takeOver, xlft.GiveUp: c.giveUp} {
				for who, d := range map[string]xlft.Decision{"daemon": d, "command": sent} {
					if err := d.Refuses(w); (err == nil) != (want == ok) || err != nil && !strings.Contains(err.Error(), want) {
						t.Errorf("%s, --%s: %v, want %q", who, w, err, want)
					}
				}
				idle := d
				idle.NotNow = "its protection is protected"
				if err := idle.Refuses(w); err == nil {
					t.Errorf("--%s is taken where nothing waits", w)
				}
			}
		})
	}
	if err := (xlft.Decision{}).Refuses("shoot"); err == nil {
		t.Error("an unknown word is taken")
	}
}

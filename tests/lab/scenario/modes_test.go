//go:build lab

package scenario

import (
	"slices"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/xlft/primary"
)

// What the modes cost and give: how long an answer takes, what an idle domain pays, what starts the checkpoints. Then
// the host dies in each of them.
func TestModes(t *testing.T) {
	lab.Long(t)
	const questions = 60
	const silence = 8 * time.Second
	fx := unprotected(t)
	alone := fx.answers(questions)
	t.Logf("unprotected: an answer takes %v, worst tenth %v", round(middle(alone)), round(alone[len(alone)*9/10]))
	median := map[string]time.Duration{}
	longest := map[string]string{"interval": "400ms", "event": "1s", "strict": "1s"}
	for _, mode := range []string{"interval", "event", "strict"} {
		if fx.status(fx.home).Protected {
			fx.home.Must(t, "xl", "ft-stop", fx.guest.Name) // the counters begin anew
		}
		fx.protect()
		fx.home.Must(t, "xl", "ft-set", fx.guest.Name, "mode="+mode, "epoch_max="+longest[mode])
		fx.get()
		took := fx.answers(questions)
		busy := fx.status(fx.home).Primary
		<-time.After(2 * time.Second) // the last answer's own traffic
		before := fx.status(fx.home).Primary
		<-time.After(silence)
		after := fx.status(fx.home).Primary
		median[mode] = middle(took)
		p := after.PauseMedian
		t.Logf("%s: an answer takes %v, worst tenth %v; checkpoints %v, watched by %s", mode, round(middle(took)), round(took[len(took)*9/10]), busy.Reasons, busy.Watching)
		t.Logf("  pause median %v (suspend %v, seal %v, capture %v, ack %v, resume %v), ack %v; %d KiB a checkpoint, %d KiB on the wire",
			round(p.Total), round(p.Suspend), round(p.Seal), round(p.Capture), round(p.Ack), round(p.Resume), round(after.AckMedian), after.BytesMedian>>10, after.WireMedian>>10)
		n := after.Checkpoints - before.Checkpoints
		events := after.Reasons[primary.WhyEvent] - before.Reasons[primary.WhyEvent]
		t.Logf("  silent for %v: %d checkpoints, %d of them for events (epoch_max %v)", silence, n, events, after.Pacing.EpochMax)
		if mode != "interval" && events > 2 {
			t.Errorf("a silent domain had %d checkpoints for its output in %v", events, silence)
		}
		if most := uint64(silence/after.Pacing.EpochMax) + 1 + events; mode != "interval" && n > most {
			t.Errorf("a silent domain had %d checkpoints in %v, want at most %d", n, silence, most)
		}
		if mode != "interval" && busy.Reasons[primary.WhyEvent] < questions/2 {
			t.Errorf("%d questions, and %d checkpoints for events", questions, busy.Reasons[primary.WhyEvent])
		}

		clients := fx.pair()
		old := fx.home
		old.Kill()
		died := time.Now()
		fx.awaitTakeover(fx.backup())
		first := clients.await(died, 20)
		t.Logf("  taken over: the first answers came after %v and %v", round(first[0]), round(first[1]))
		clients.end()
		fx.revive(old)
	}
	if median["event"] > median["interval"] {
		t.Errorf("an answer takes %v in the mode event, %v in interval", median["event"], median["interval"])
	}
}

// answers asks the guest so many questions, one after the other, and returns how long the answers took, sorted.
func (fx *fixture) answers(n int) []time.Duration {
	fx.t.Helper()
	var all []time.Duration
	c := fx.ask()
	for range n {
		begun := time.Now()
		_, err := c.Get()
		check(fx.t, err)
		all = append(all, time.Since(begun))
	}
	slices.Sort(all)
	return all
}

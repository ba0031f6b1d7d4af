package backup

import (
	"errors"
	"testing"

	"xlft/tests/story"

	"xlft/xlft"
)

func TestStories(t *testing.T) {
	story.Run(t, func() func([]string) string { return tell(new(Machine)) })
}

var errStory = errors.New("broke")

func tell(m *Machine) func([]string) string {
	verdicts := map[string]xlft.Verdict{"won": xlft.Won, "lost": xlft.Lost, "unreachable": xlft.Unreachable}
	return func(w []string) string {
		var ev Event
		switch w[0] {
		case "whole":
			ev = Whole{story.Number(w, 1)}
		case "lost":
			ev = PrimaryLost{errStory}
		case "handed":
			ev = Handed{story.Number(w, 1)}
		case "destroy":
			ev = DestroyAsked{errUnprotected, true}
		case "stopping":
			ev = DestroyAsked{errStopping, false}
		case "arbitrated":
			ev = Arbitrated{verdicts[w[1]]}
		case "retry":
			ev = Retry{}
		case "resolved":
			ev = Resolved{w[1] == "here"}
		case "failed":
			ev = ReplicaFailed{errStory}
		case "restored":
			ev = Restored{}
		default:
			return "unknown command " + w[0] + "\n"
		}
		return story.Step(m, ev, m.Step)
	}
}

// The machine must take every event in every state without a panic; what a peer
// or an operator does is not its to choose.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 0, 1, 4})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := new(Machine)
		won := false // by the arbiter, or an operator's word
		for _, c := range script {
			arg := uint64(c >> 4)
			ev := []Event{
				Whole{m.acked + 1}, PrimaryLost{errStory}, Handed{arg}, DestroyAsked{errUnprotected, true}, Arbitrated{xlft.Verdict(arg % 3)},
				Retry{}, ReplicaFailed{errStory}, Restored{}, Resolved{arg%2 == 1},
			}[c%9]
			if cl, ok := ev.(Arbitrated); ok && m.State() == Claiming && cl.Verdict == xlft.Won {
				won = true
			}
			if w, ok := ev.(Resolved); ok && m.State() == Claiming && w.Here {
				won = true
			}
			for _, a := range m.Step(ev) {
				if _, ok := a.(TakeOver); ok && (!won || m.acked == 0) {
					t.Fatal("takes over without the arbiter's word or without a checkpoint")
				}
			}
		}
	})
}

package backup

import (
	"errors"
	"testing"

	"xlft/tests/story"

	"xlft/xlft"
)

func TestStories(t *testing.T) {
	story.Run(t, func() func([]string) string { return tell(new(StandbyMachine)) })
}

var errStory = errors.New("broke")

func tell(m *StandbyMachine) func([]string) string {
	verdicts := map[string]xlft.Verdict{"won": xlft.Won, "lost": xlft.Lost, "unreachable": xlft.Unreachable}
	return func(w []string) string {
		var ev StandbyEvent
		switch w[0] {
		case "whole":
			ev = Whole{story.Number(w, 1)}
		case "lost":
			ev = PrimaryLost{errStory}
		case "handed":
			ev = Handed{story.Number(w, 1)}
		case "drop":
			ev = DropAsked{errDropped}
		case "claimed":
			ev = Claimed{verdicts[w[1]]}
		case "retry":
			ev = RetryClaim{}
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
func FuzzStandbyMachine(f *testing.F) {
	f.Add([]byte{0, 0, 1, 4})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := new(StandbyMachine)
		won := false
		for _, c := range script {
			arg := uint64(c >> 4)
			ev := []StandbyEvent{
				Whole{m.acked + 1}, PrimaryLost{errStory}, Handed{arg}, DropAsked{errDropped}, Claimed{xlft.Verdict(arg % 3)},
				RetryClaim{}, ReplicaFailed{errStory}, Restored{},
			}[c%8]
			if cl, ok := ev.(Claimed); ok && m.State() == Claiming && cl.Verdict == xlft.Won {
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

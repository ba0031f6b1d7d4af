//go:build lab

package scenario

import (
	"errors"
	"strings"

	"xlft/tests/lab"
	"xlft/tests/lab/probe"
)

// judge checks that every reply that clients got since the guest was in state start agrees with its present state.
func (fx *fixture) judge(start probe.State, replies ...[]probe.Reply) {
	fx.t.Helper()
	end := fx.get()
	total := 0
	for _, r := range replies {
		total += len(r)
	}
	untrue, err := probe.Judge(start, end, replies...)
	fx.t.Logf("%d replies, counted by the guest %d, untrue %d", total, end.Count-start.Count, untrue)
	if untrue > 0 || uint64(total) != end.Count-start.Count {
		fx.t.Errorf("%d replies, the guest counted %d, %d are untrue: %v", total, end.Count-start.Count, untrue, err)
	}
}

// refused runs a command that must fail with exit status 1 and a message that contains a text. It returns the message.
func (fx *fixture) refused(h *lab.Host, words string, argv ...string) string {
	fx.t.Helper()
	_, err := h.Run(within(fx.t, patience), argv...)
	var ce *lab.CommandError
	if !errors.As(err, &ce) || ce.Status.Code != 1 {
		fx.t.Errorf("%s: %v, want exit status 1", strings.Join(argv, " "), err)
		return ""
	}
	msg := strings.TrimSpace(ce.Stderr)
	fx.t.Logf("%s\n%s", strings.Join(argv, " "), msg)
	if !strings.Contains(msg, words) {
		fx.t.Errorf("%s: the message has not %q", strings.Join(argv, " "), words)
	}
	return msg
}

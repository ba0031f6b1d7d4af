package primary

import (
	"errors"
	"strings"
	"testing"

	"xlft/tests/story"

	"xlft/xlft"
	"xlft/xlft/wire"
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
		case "start":
			said := strings.Join(w[1:], " ")
			ev = Start{Held: strings.Contains(said, "held"), Handed: strings.Contains(said, "handed"), Yielded: strings.Contains(said, "yielded"),
				Paused: strings.Contains(said, "paused")}
		case "connected":
			ev = Connected{}
		case "synced":
			ev = DisksSynced{}
		case "disks-lost":
			ev = DisksLost{errors.New("disk error")}
		case "connect-failed":
			ev = ConnectFailed{errStory}
		case "moves-on":
			ev = MovesOn{errStory}
		case "owner":
			ev = Owner{map[string]wire.Role{"none": wire.RoleNone, "replica": wire.RoleReplica, "running": wire.RoleRunning}[w[1]]}
		case "changed":
			ev = DomainChanged{errors.New("a disk came")}
		case "gate-failed":
			ev = GateFailed{errStory}
		case "not-drained":
			ev = NotDrained{errStory}
		case "trigger":
			ev = Trigger{WhyInterval}
			if len(w) > 1 {
				ev = Trigger{WhyFull}
			}
		case "paced":
			ev = Paced{Strict: w[1] == "strict"}
		case "captured":
			ev = Captured{story.Number(w, 1)}
		case "save-ended":
			ev = SaveEnded{}
			if len(w) > 1 {
				ev = SaveEnded{errStory}
			}
		case "acked":
			ev = Acked{story.Number(w, 1)}
		case "lost":
			ev = BackupLost{errStory}
		case "destroyed":
			ev = ReplicaDestroyed{errStory}
		case "arbitrated":
			ev = Arbitrated{verdicts[w[1]]}
		case "backup-runs":
			ev = BackupRuns{}
		case "retry":
			ev = Retry{}
		case "stop":
			ev = StopAsked{}
		case "failover":
			ev = FailoverAsked{}
		case "resolved":
			ev = Resolved{Here: w[1] == "here"}
		case "guest-ended":
			ev = GuestEnded{w[1]}
		default:
			return "unknown command " + w[0] + "\n"
		}
		return story.Step(m, ev, m.Step)
	}
}

// The machine must take every event in every state without a panic; what a peer
// or an operator does is not its to choose.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 1, 5, 7, 4, 5, 7})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := new(Machine)
		paused := false
		var stands uint64 // epoch whose strict checkpoint the domain waits for, suspended
		taken := map[uint64]Checkpoint{}
		for _, c := range script {
			arg := uint64(c >> 4)
			evs := []Event{
				Start{Held: arg%2 == 1, Handed: arg%4 == 3, Yielded: arg == 4, Paused: arg%8 > 5}, Connected{}, ConnectFailed{errStory}, Owner{[]wire.Role{wire.RoleNone, wire.RoleRunning, wire.RoleReplica, ""}[arg%4]}, Trigger{[]Why{WhyDirty, WhyFull}[arg%2]},
				Captured{m.taking}, SaveEnded{}, Acked{arg}, BackupLost{errStory}, ReplicaDestroyed{errStory},
				Arbitrated{xlft.Verdict(arg % 3)}, BackupRuns{}, Retry{}, StopAsked{}, FailoverAsked{}, GuestEnded{"crash"}, GateFailed{errStory}, DomainChanged{errStory}, Paced{Strict: arg%2 == 1},
				Resolved{Here: arg%2 == 1}, MovesOn{errStory},
			}
			ev := evs[int(c)%len(evs)]
			if _, ok := ev.(Captured); ok && m.taking == 0 {
				continue // the session's own word, never untrue
			}
			before := m.State()
			if s, ok := ev.(Start); ok {
				if before != Connecting || m.paused {
					continue // the first event, and no other
				}
				paused = s.Paused
			}
			switch ev := ev.(type) {
			case Captured:
				if taken[ev.Epoch].Strict {
					stands = ev.Epoch
				}
			case SaveEnded:
				stands = 0 // the save's own doing
			}
			for _, a := range m.Step(ev) {
				switch a := a.(type) {
				case Connect, BeginSave:
					clear(taken)
				case Resume:
					// Not before the ack; or the mode was changed.
					if p, ok := ev.(Paced); stands == 0 || m.flight == stands && (!ok || p.Strict) {
						t.Fatalf("resumed in %v after %v: epoch %d in flight, the domain waits for %d", before, ev, m.flight, stands)
					}
					stands = 0
				case Pause, Unpause:
					// Xen counts pauses, an operator's among them.
					if _, on := a.(Pause); on == paused {
						t.Fatalf("%T in %v after %v: paused already %v", a, before, ev, paused)
					}
					paused = !paused
				case Destroy:
					if _, ok := ev.(Resolved); ok && before != Blocked {
						t.Fatalf("destroyed in %v by an operator's word: nothing waited for it, or it may have been won", before)
					}
					paused = false
				case CloseGate:
					if paused {
						t.Fatalf("the domain stays paused in %v after %v", before, ev)
					}
				case Checkpoint:
					if paused {
						t.Fatalf("checkpoint %d of a paused domain", a.Epoch)
					}
					if m.flight != 0 {
						t.Fatalf("checkpoint %d with epoch %d in flight", a.Epoch, m.flight)
					}
					if stands != 0 {
						t.Fatalf("checkpoint %d of a domain that is suspended since checkpoint %d", a.Epoch, stands)
					}
					if a.Why == "" {
						t.Fatalf("checkpoint %d for no reason", a.Epoch)
					}
					taken[a.Epoch] = a
				case Release:
					if stands != 0 && stands != a.Epoch {
						t.Fatalf("release %d while the domain waits for %d", a.Epoch, stands)
					}
					if a.Epoch != m.acked {
						t.Fatalf("release %d, but %d is acked", a.Epoch, m.acked)
					}
				case ReleaseAll:
					// All output may go only if nobody else can run the domain.
					if m.exposed {
						t.Fatalf("everything released in %v after %v while the backup may take over", before, ev)
					}
				}
			}
			if before == Ended && m.State() != Ended {
				t.Fatal("left the end")
			}
		}
	})
}

package xlft

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the stories in testdata with what the machines do; read them before committing")

// A story is a file of commands, each followed by "----", the state that it
// led to and the actions, as in etcd-io/raft's interaction tests:
//
//	# why this story is told
//	acked 1
//	----
//	protected
//	  release 1
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			tell := tellPrimary(new(Machine))
			if strings.HasPrefix(filepath.Base(f), "backup") {
				tell = tellBackup(new(StandbyMachine))
			}
			got := play(string(b), tell)
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(b) {
				t.Errorf("the story goes otherwise; -rewrite shows it in the file:\n%s", got)
			}
		})
	}
}

// play runs the commands of a story and returns the story as it went.
func play(story string, tell func(words []string) string) string {
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(story), "\n\n") {
		var cmds []string
		for l := range strings.SplitSeq(block, "\n") {
			if l == "----" {
				break
			}
			fmt.Fprintln(&out, l)
			if l != "" && !strings.HasPrefix(l, "#") {
				cmds = append(cmds, l)
			}
		}
		if len(cmds) > 0 {
			fmt.Fprintln(&out, "----")
		}
		for _, c := range cmds {
			out.WriteString(tell(strings.Fields(c)))
		}
		fmt.Fprintln(&out)
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

func number(words []string, i int) uint64 {
	if i >= len(words) {
		return 0
	}
	n, _ := strconv.ParseUint(words[i], 10, 64)
	return n
}

var errStory = errors.New("broke")

func tellPrimary(m *Machine) func([]string) string {
	verdicts := map[string]Verdict{"won": Won, "lost": Lost, "unreachable": Unreachable}
	return func(w []string) string {
		var ev Event
		switch w[0] {
		case "start":
			said := strings.Join(w[1:], " ")
			ev = Start{Held: strings.Contains(said, "held"), Handed: strings.Contains(said, "handed"), Yielded: strings.Contains(said, "yielded")}
		case "connected":
			ev = Connected{}
		case "synced":
			ev = DisksSynced{}
		case "disks-lost":
			ev = DisksLost{errors.New("disk error")}
		case "connect-failed":
			ev = ConnectFailed{errStory}
		case "owner":
			ev = Owner{Role: map[string]Role{"none": RoleNone, "running": RoleRunning}[w[1]], Unreachable: w[1] == "unreachable"}
		case "not-drained":
			ev = NotDrained{errStory}
		case "trigger":
			ev = Trigger{WhyInterval}
		case "captured":
			ev = Captured{number(w, 1)}
		case "save-ended":
			ev = SaveEnded{}
			if len(w) > 1 {
				ev = SaveEnded{errStory}
			}
		case "acked":
			ev = Acked{number(w, 1)}
		case "lost":
			ev = BackupLost{errStory}
		case "dropped":
			ev = ReplicaDropped{errStory}
		case "solo":
			ev = Solo{verdicts[w[1]]}
		case "backup-runs":
			ev = BackupRuns{}
		case "retry":
			ev = Retry{}
		case "stop":
			ev = StopAsked{}
		case "failover":
			ev = FailoverAsked{}
		case "guest-ended":
			ev = GuestEnded{w[1]}
		default:
			return "unknown command " + w[0] + "\n"
		}
		return told(m, ev, m.Step)
	}
}

func tellBackup(m *StandbyMachine) func([]string) string {
	verdicts := map[string]Verdict{"won": Won, "lost": Lost, "unreachable": Unreachable}
	return func(w []string) string {
		var ev StandbyEvent
		switch w[0] {
		case "whole":
			ev = Whole{number(w, 1)}
		case "lost":
			ev = PrimaryLost{errStory}
		case "handed":
			ev = Handed{number(w, 1)}
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
		return told(m, ev, m.Step)
	}
}

// told steps a machine and words what came of it.
func told[S fmt.Stringer, E, A any](m interface{ State() S }, ev E, step func(E) []A) string {
	acts := step(ev)
	var b strings.Builder
	fmt.Fprintln(&b, m.State())
	for _, a := range acts {
		name := strings.TrimPrefix(fmt.Sprintf("%T", a), "xlft.")
		s := fmt.Sprintf("%+v", a)
		fmt.Fprintf(&b, "  %s%s\n", name, strings.TrimSuffix(" "+strings.Trim(s, "{}"), " "))
	}
	return b.String()
}

// The machines must take every event in every state without a panic; what a
// peer or an operator does is not theirs to choose.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 1, 5, 7, 4, 5, 7})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := new(Machine)
		for _, c := range script {
			arg := uint64(c >> 4)
			evs := []Event{
				Start{arg%2 == 1, arg%4 == 3, arg == 4}, Connected{}, ConnectFailed{errStory}, Owner{Role(arg % 2), arg > 7}, Trigger{WhyDirty},
				Captured{m.taking}, SaveEnded{}, Acked{arg}, BackupLost{errStory}, ReplicaDropped{errStory},
				Solo{Verdict(arg % 3)}, BackupRuns{}, Retry{}, StopAsked{}, FailoverAsked{}, GuestEnded{"crash"},
			}
			ev := evs[c%16]
			if _, ok := ev.(Captured); ok && m.taking == 0 {
				continue // the session's own word, never untrue
			}
			before := m.State()
			for _, a := range m.Step(ev) {
				switch a := a.(type) {
				case Checkpoint:
					if m.flight != 0 {
						t.Fatalf("checkpoint %d with epoch %d in flight", a.Epoch, m.flight)
					}
				case Release:
					if a.Epoch != m.acked {
						t.Fatalf("release %d, but %d is acked", a.Epoch, m.acked)
					}
				case Abandon:
					// All output may go only if nobody else can run the domain.
					if m.exposed {
						t.Fatalf("abandon in %v after %v while the backup may take over", before, ev)
					}
				}
			}
			if before == Ended && m.State() != Ended {
				t.Fatal("left the end")
			}
		}
	})
}

func FuzzStandbyMachine(f *testing.F) {
	f.Add([]byte{0, 0, 1, 4})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := new(StandbyMachine)
		won := false
		for _, c := range script {
			arg := uint64(c >> 4)
			ev := []StandbyEvent{
				Whole{m.acked + 1}, PrimaryLost{errStory}, Handed{arg}, DropAsked{errDropped}, Claimed{Verdict(arg % 3)},
				RetryClaim{}, ReplicaFailed{errStory}, Restored{},
			}[c%8]
			if cl, ok := ev.(Claimed); ok && m.State() == Claiming && cl.Verdict == Won {
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

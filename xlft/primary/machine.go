package primary

import (
	"errors"
	"fmt"

	"xlft/xlft"
)

// State is what a primary's Machine is at.
type State int

//	┌────────────────────────────────────────────────┐
//
// Connecting ──connected──► Seeding ──first ack──► Protected │
//
//	▲                        │                    │  │  │  │
//	│                   lost before               │  │  └──┴─ failover ─► HandingOver ─► Ended
//	│                 anything counts            lost └─ stop, guest ended ─► Dropping ─► Ended
//	│                        ▼                    ▼
//	└──save has ended─── Detaching ◄──solo won── Doubt ──solo lost──► Ended (domain destroyed here)
//	                                             ▲  │
//	Recovering ──peer can't be asked─────────────┘  └─arbiter unreachable─► Fenced ─► Doubt
const (
	// Connecting: not protected; output flows; the backup is being called.
	Connecting State = iota
	// Recovering: an earlier protector of this domain died while holding its
	// output. Nobody knows yet who owns the domain; output stays held.
	Recovering
	// Seeding: the first checkpoint is under way.
	Seeding
	// Protected: the backup holds a whole checkpoint and can take over.
	Protected
	// Doubt: the backup is silent after it could have taken over. Output stays
	// held until the arbiter has answered.
	Doubt
	// Fenced: the arbiter can't be reached either. The domain is stopped.
	Fenced
	// Dropping: protection ends; the backup is destroying its replica.
	Dropping
	// Detaching: this host is the only runner; the save is coming to its end.
	Detaching
	// HandingOver: planned switch-over to the backup.
	HandingOver
	// Ended: nothing more happens.
	Ended
)

var stateNames = [...]string{"connecting", "recovering", "seeding", "protected", "doubt", "fenced", "dropping", "detaching", "handing-over", "ended"}

func (s State) String() string { return stateNames[s] }

// Event is something that happened to a primary.
type Event interface{ isEvent() }

// The events of a Machine.
type (
	// Start is the first event. Held says that an earlier protector left the
	// domain's output held, Handed that it may have told the backup to run the
	// domain, and Yielded that it knew that the backup runs it.
	Start struct{ Held, Handed, Yielded bool }
	// Connected: the backup accepted the offer.
	Connected struct{}
	// DisksSynced: the backup's disks are as this host's.
	DisksSynced struct{}
	// DisksLost: a disk is not replicated any more.
	DisksLost struct{ Err error }
	// ConnectFailed: it did not, or could not be reached.
	ConnectFailed struct{ Err error }
	// Owner is the backup's answer to AskOwner; Unreachable if it gave none.
	Owner struct {
		Role        Role
		Unreachable bool
	}
	// Trigger asks for a checkpoint.
	Trigger struct{ Why Why }
	// Captured: the checkpoint stands in memory here, and the domain runs
	// again unless the checkpoint was the final one.
	Captured struct{ Epoch uint64 }
	// SaveEnded: the save is over and the domain, if it is still there, runs.
	SaveEnded struct{ Err error }
	// Acked: the backup holds all of the checkpoint, verified.
	Acked struct{ Epoch uint64 }
	// BackupLost: silence, or a broken connection.
	BackupLost struct{ Err error }
	// ReplicaDropped: the backup destroyed its replica and will never run it.
	ReplicaDropped struct{ Err error }
	// Solo is the arbiter's answer to AskArbiter.
	Solo struct{ Verdict xlft.Verdict }
	// BackupRuns: the backup has taken over, asked by HandOver or by itself.
	BackupRuns struct{}
	// Retry: the delay of a RetryLater is over.
	Retry struct{}
	// StopAsked: the operator ends protection.
	StopAsked struct{}
	// FailoverAsked: the operator moves the domain to the backup.
	FailoverAsked struct{}
	// NotDrained: what was released has not left, or the switch-over could not
	// be recorded; the backup has not been told to run the domain.
	NotDrained struct{ Err error }
	// GuestEnded: the domain shut down, crashed or was destroyed by itself.
	GuestEnded struct{ Why string }
)

func (Start) isEvent() {}

func (Connected) isEvent() {}

func (DisksSynced) isEvent() {}

func (DisksLost) isEvent() {}

func (ConnectFailed) isEvent() {}

func (Owner) isEvent() {}

func (Trigger) isEvent() {}

func (Captured) isEvent() {}

func (SaveEnded) isEvent() {}

func (Acked) isEvent() {}

func (BackupLost) isEvent() {}

func (ReplicaDropped) isEvent() {}

func (Solo) isEvent() {}

func (BackupRuns) isEvent() {}

func (Retry) isEvent() {}

func (StopAsked) isEvent() {}

func (FailoverAsked) isEvent() {}

func (NotDrained) isEvent() {}

func (GuestEnded) isEvent() {}

// Role is what the backup says it is to a domain.
type Role int

const (
	RoleNone    Role = iota // holds no replica, or has just destroyed it
	RoleRunning             // took the domain over
)

// Why names the reason of a checkpoint.
type Why string

const (
	WhyInterval Why = "epoch_max"
	WhyDirty    Why = "dirty_max"
	WhyBacklog  Why = "backlog"
	WhyOutput   Why = "output"
)

// Action is something a primary's Session is to carry out.
type Action interface{ isAction() }

// The actions of a Machine, to be carried out in order.
type (
	// Connect calls the backup and offers it the domain.
	Connect struct{}
	// AskOwner asks the backup for the domain back.
	AskOwner struct{}
	// SyncDisks begins the session, with the first copy of the disks.
	SyncDisks struct{}
	// BeginSave starts the save with its first, live checkpoint.
	BeginSave struct{}
	// Checkpoint lets the save take the next checkpoint. After a Final one the
	// domain stays suspended.
	Checkpoint struct {
		Epoch uint64
		Final bool
	}
	// Send puts the captured checkpoint on the wire.
	Send struct{ Epoch uint64 }
	// Release lets the epoch's output out.
	Release struct{ Epoch uint64 }
	// HandOver tells the backup to run the domain from the epoch on.
	HandOver struct{ Epoch uint64 }
	// AskDrop tells the backup to destroy its replica.
	AskDrop struct{}
	// AskArbiter asks for the right to run alone; Handed if the backup has been
	// told to run the domain.
	AskArbiter struct{ Handed bool }
	// EndSave ends the save; SaveEnded follows. The domain runs afterwards.
	EndSave struct{}
	// Hold stops the domain where it is.
	Hold struct{}
	// Unhold lets it run again.
	Unhold struct{}
	// Abandon lets all output out and stops holding it.
	Abandon struct{}
	// NextGeneration counts a change of owner, for good.
	NextGeneration struct{}
	// Hangup closes the connections to the backup. With Drop it is first told
	// to destroy its replica, should it still listen: a backup that was only
	// slow must not take the end of the connection for the primary's death.
	Hangup struct{ Drop bool }
	// RetryLater asks for a Retry event.
	RetryLater struct{}
	// Destroy destroys the domain here and drops the output held.
	Destroy struct{}
	// CloseGate takes the gate down without losing a packet.
	CloseGate struct{}
	// Exit ends the session with an error or, if nil, well.
	Exit struct{ Err error }
)

func (Connect) isAction() {}

func (AskOwner) isAction() {}

func (SyncDisks) isAction() {}

func (BeginSave) isAction() {}

func (Checkpoint) isAction() {}

func (Send) isAction() {}

func (Release) isAction() {}

func (HandOver) isAction() {}

func (AskDrop) isAction() {}

func (AskArbiter) isAction() {}

func (EndSave) isAction() {}

func (Hold) isAction() {}

func (Unhold) isAction() {}

func (Abandon) isAction() {}

func (NextGeneration) isAction() {}

func (Hangup) isAction() {}

func (RetryLater) isAction() {}

func (Destroy) isAction() {}

func (CloseGate) isAction() {}

func (Exit) isAction() {}

// Errors with which a Session ends.
var (
	// ErrBackupRuns: the backup runs the domain; the copy here was destroyed
	// before any of its held output left.
	ErrBackupRuns = errors.New("the backup runs the domain; the local copy was destroyed and its held output dropped")
	// ErrBothRun: the backup says it runs the domain while this host runs it
	// too, by its own right. Only an operator can choose.
	ErrBothRun = errors.New("the backup says it runs the domain too: split brain")
)

// A Machine decides what the primary of a protected domain does next. It does
// no I/O, starts no goroutine and reads no clock: the same events always give
// the same actions, to be carried out in order.
type Machine struct {
	state State

	acked  uint64 // newest epoch the backup holds
	flight uint64 // captured and sent, not yet acked; 0 if none
	taking uint64 // being captured; 0 if none

	// exposed: the backup may hold a whole checkpoint, so that it may take
	// over. From here on only the arbiter or the backup's own word can make
	// this host the only runner.
	exposed bool
	saving  bool // a save runs
	proven  bool // was protected before: failures are retried, not fatal

	// What Dropping, Doubt and Detaching lead to.
	stopping bool  // Ended instead of Connecting
	exitErr  error // with this

	failover bool // hand over as soon as nothing is in flight
	handed   bool // the backup may have been told, by this protector or an earlier one, to run the domain
	held     bool // domain stopped by Hold
}

// State returns the state.
func (m *Machine) State() State { return m.state }

// Acked returns the newest epoch that the backup holds; 0 if none.
func (m *Machine) Acked() uint64 { return m.acked }

// InFlight returns the epoch that was sent and is not acked; 0 if none.
func (m *Machine) InFlight() uint64 { return m.flight }

// Step takes an event and returns what to do. An event that means nothing in
// the present state, such as a repeated ack, gives no actions.
func (m *Machine) Step(ev Event) []Action {
	// What means the same in every state.
	switch ev := ev.(type) {
	case Captured:
		if ev.Epoch != m.taking {
			panic(fmt.Sprintf("xlft: captured epoch %d while taking %d", ev.Epoch, m.taking))
		}
		m.taking, m.flight = 0, ev.Epoch
		m.exposed = true
	case SaveEnded:
		m.saving, m.taking = false, 0
	case Acked:
		if ev.Epoch != m.flight {
			return nil // a repeat, of a session that is over, or of what was not sent whole
		}
		m.acked, m.flight = ev.Epoch, 0
	}
	switch m.state {
	case Connecting:
		return m.stepConnecting(ev)
	case Recovering:
		return m.stepRecovering(ev)
	case Seeding, Protected:
		return m.stepRunning(ev)
	case Doubt, Fenced:
		return m.stepDoubt(ev)
	case Dropping:
		return m.stepDropping(ev)
	case Detaching:
		return m.stepDetaching(ev)
	case HandingOver:
		return m.stepHandingOver(ev)
	}
	return nil
}

func (m *Machine) stepConnecting(ev Event) []Action {
	switch ev := ev.(type) {
	case Start:
		switch {
		case ev.Yielded:
			return m.yield()
		case ev.Held:
			m.state = Recovering
			m.proven, m.handed = true, ev.Handed
			return []Action{AskOwner{}}
		}
		// Abandon: a gate may be left of one that died after all was decided.
		return []Action{Abandon{}, Connect{}}
	case Connected:
		m.state = Seeding
		m.acked, m.flight, m.taking = 0, 0, 0
		m.exposed, m.saving = false, false
		m.failover = false
		return []Action{SyncDisks{}}
	case ConnectFailed:
		if !m.proven {
			return m.end(ev.Err)
		}
		return []Action{RetryLater{}}
	case Retry:
		return []Action{Connect{}}
	case StopAsked:
		return m.end(nil)
	case GuestEnded:
		return m.end(fmt.Errorf("%w: %s", xlft.ErrGuestEnded, ev.Why))
	}
	return nil
}

func (m *Machine) stepRecovering(ev Event) []Action {
	switch ev := ev.(type) {
	case Owner:
		switch {
		case ev.Unreachable:
			m.state = Doubt
			return []Action{AskArbiter{Handed: m.handed}}
		case ev.Role == RoleRunning:
			return m.yield()
		}
		return m.alone()
	case StopAsked:
		m.stopping = true
	}
	return nil
}

// stepRunning is Seeding and Protected: a save runs and the backup listens.
func (m *Machine) stepRunning(ev Event) []Action {
	switch ev := ev.(type) {
	case DisksSynced:
		m.taking, m.saving = 1, true
		return []Action{BeginSave{}}
	case DisksLost:
		m.giveUp(ev.Err)
		return m.drop()
	case Trigger:
		return m.checkpoint()
	case Captured:
		return []Action{Send{ev.Epoch}}
	case Acked:
		if m.state == Seeding {
			m.state = Protected
			m.proven = true
		}
		acts := []Action{Release{ev.Epoch}}
		if m.failover {
			acts = append(acts, m.handOver()...)
		}
		return acts
	case BackupLost:
		m.giveUp(ev.Err)
		return m.lost()
	case ReplicaDropped:
		m.giveUp(ev.Err)
		return m.detach()
	case BackupRuns:
		return m.yield()
	case SaveEnded:
		// The save failed: the domain runs, its replica grows old. What is
		// held may go once the backup has dropped the replica.
		m.giveUp(ev.Err)
		return m.drop()
	case StopAsked:
		m.stopping = true
		return m.drop()
	case GuestEnded:
		m.stopping = true
		m.exitErr = fmt.Errorf("%w: %s", xlft.ErrGuestEnded, ev.Why)
		return m.drop()
	case FailoverAsked:
		m.failover = true
		if m.state == Protected && m.flight == 0 && m.taking == 0 {
			return m.handOver()
		}
	}
	return nil
}

// giveUp makes the first start fail as a whole; later failures are retried.
func (m *Machine) giveUp(err error) {
	if !m.proven {
		m.stopping, m.exitErr = true, err
	}
}

// checkpoint takes the next epoch unless one is in flight: the plug qdisc can
// hold one sealed epoch only, so a slow backup stretches the epoch.
func (m *Machine) checkpoint() []Action {
	if m.state != Protected || m.flight != 0 || m.taking != 0 {
		return nil
	}
	m.taking = m.acked + 1
	return []Action{Checkpoint{Epoch: m.taking}}
}

func (m *Machine) handOver() []Action {
	m.state = HandingOver
	m.taking = m.acked + 1
	return []Action{Checkpoint{Epoch: m.taking, Final: true}}
}

func (m *Machine) stepHandingOver(ev Event) []Action {
	switch ev := ev.(type) {
	case Captured:
		return []Action{Send{ev.Epoch}}
	case Acked:
		// Its output may go: the backup resumes from here or from nothing.
		m.handed = true
		return []Action{Release{ev.Epoch}, HandOver{ev.Epoch}}
	case BackupRuns:
		m.state = Ended
		// Destroy first: it records who runs the domain. A successor that knew
		// only of the next generation would let the output out.
		return []Action{Destroy{}, NextGeneration{}, EndSave{}, Hangup{}, Exit{nil}}
	case BackupLost:
		return m.lost()
	case ReplicaDropped:
		return m.detach()
	case SaveEnded:
		m.exitErr = ev.Err
		return m.drop()
	case NotDrained:
		m.handed = false
		return m.drop()
	case DisksLost:
		if m.handed {
			return nil // the backup has been handed the domain, and takes its disks
		}
		m.exitErr = ev.Err
		return m.drop()
	case StopAsked:
		m.stopping = true // should the switch-over fail
	case GuestEnded:
		m.stopping = true
		m.exitErr = fmt.Errorf("%w: %s", xlft.ErrGuestEnded, ev.Why)
		return m.drop()
	}
	return nil
}

// lost: the backup is silent. It can't have taken over unless it may hold a
// whole checkpoint; then the arbiter decides.
func (m *Machine) lost() []Action {
	if !m.exposed {
		return m.detach()
	}
	// The connection stays until the arbiter has answered: its end would make
	// a backup that lives claim the domain.
	m.state = Doubt
	return m.ask()
}

// ask finds out who owns the domain. A backup that has been told to run it may
// do so by the primary's own word: it is asked itself before the arbiter.
func (m *Machine) ask() []Action {
	if m.handed {
		return []Action{AskOwner{}}
	}
	return []Action{AskArbiter{}}
}

func (m *Machine) stepDoubt(ev Event) []Action {
	switch ev := ev.(type) {
	case Solo:
		switch ev.Verdict {
		case xlft.Won:
			return append([]Action{Hangup{Drop: true}}, m.alone()...)
		case xlft.Lost:
			if !m.handed {
				return m.yield()
			}
			// It has claimed what it was handed. Whether it runs it is its own
			// word to give.
		}
		// In doubt the domain waits; it is never guessed. The backup may claim.
		m.state = Fenced
		acts := []Action{Hangup{}}
		if !m.held {
			m.held = true
			acts = append(acts, Hold{})
		}
		return append(acts, RetryLater{})
	case Owner:
		switch {
		case ev.Unreachable:
			return []Action{AskArbiter{Handed: true}}
		case ev.Role == RoleRunning:
			return m.yield()
		}
		return m.detach()
	case NotDrained:
		m.handed = false // after all
	case Retry:
		m.state = Doubt
		return m.ask()
	case BackupRuns:
		return m.yield()
	case StopAsked:
		m.stopping = true
	case GuestEnded:
		m.stopping = true
		m.exitErr = fmt.Errorf("%w: %s", xlft.ErrGuestEnded, ev.Why)
	}
	return nil
}

func (m *Machine) drop() []Action {
	m.state = Dropping
	return []Action{AskDrop{}}
}

func (m *Machine) stepDropping(ev Event) []Action {
	switch ev := ev.(type) {
	case ReplicaDropped:
		return m.detach()
	case BackupRuns:
		return m.yield()
	case Acked:
		return []Action{Release{ev.Epoch}}
	case BackupLost:
		return m.lost()
	case StopAsked:
		m.stopping = true
	}
	return nil
}

// detach: this host is the only runner, by the backup's own word or because
// the backup never held a whole checkpoint.
func (m *Machine) detach() []Action {
	return append([]Action{Hangup{}}, m.alone()...)
}

// alone: this host is the only runner. What is held may go, after the save has
// ended: until then a capture might seal the gate again.
func (m *Machine) alone() []Action {
	m.state = Detaching
	acts := []Action{NextGeneration{}}
	if m.held {
		m.held = false
		acts = append(acts, Unhold{})
	}
	if m.saving {
		return append(acts, EndSave{})
	}
	return append(acts, m.settle()...)
}

func (m *Machine) stepDetaching(ev Event) []Action {
	switch ev.(type) {
	case SaveEnded:
		return m.settle()
	case StopAsked:
		m.stopping = true
	}
	return nil
}

// settle is the end of every protection that leaves the domain running here.
func (m *Machine) settle() []Action {
	m.acked, m.flight, m.exposed, m.handed = 0, 0, false, false
	if m.stopping {
		return append([]Action{Abandon{}}, m.end(m.exitErr)...)
	}
	m.state = Connecting
	m.exitErr = nil
	return []Action{Abandon{}, RetryLater{}}
}

// yield: the backup is the runner.
func (m *Machine) yield() []Action {
	m.state = Ended
	acts := []Action{Destroy{}}
	if m.saving {
		acts = append(acts, EndSave{})
	}
	return append(acts, Hangup{}, Exit{ErrBackupRuns})
}

func (m *Machine) end(err error) []Action {
	m.state = Ended
	return []Action{CloseGate{}, Exit{err}}
}

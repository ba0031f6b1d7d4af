package primary

import (
	"errors"
	"fmt"
	"slices"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// State is the state of the primary's Machine.
type State int

// The states of a primary:
//
//	Connecting ──connected──► Syncing ──first ack──► Protected ──failover──► HandingOver ──► Ended
//	   ▲                         │                     │   │
//	   │                 lost before the        backup │   │ stop, disks lost,
//	   │                  first capture           lost │   │ guest ended
//	   │                         ▼                     ▼   ▼
//	   └──────save ended───── Detaching ◄──won── Arbitrating  Ending ──replica destroyed──► Detaching
//	                             │                 ▲  │  │
//	                             │     Recovering ─┘  │  └──lost──► Ended (domain destroyed here)
//	                             └─stop─► Ended       └──unreachable──► Blocked ──► Arbitrating
const (
	// Connecting: not protected; output flows; the backup is being called.
	Connecting State = iota
	// Recovering: an earlier protector of this domain died while it held the
	// domain's output. It is not known yet who owns the domain, and the output
	// stays held.
	Recovering
	// Syncing: the first checkpoint is under way.
	Syncing
	// Protected: the backup holds a whole checkpoint and can take over.
	Protected
	// Arbitrating: the backup is silent after it could have taken over. Output
	// stays held until the arbiter has answered.
	Arbitrating
	// Blocked: the arbiter can't be reached either. The domain is paused.
	Blocked
	// Ending: protection ends; the backup is destroying its replica.
	Ending
	// Detaching: this host is the only runner; the save is coming to its end.
	Detaching
	// HandingOver: a planned switch-over to the backup is under way.
	HandingOver
	// Ended: nothing more happens.
	Ended
)

var stateNames = [...]string{"connecting", "recovering", "syncing", "protected", "arbitrating", "blocked", "ending", "detaching", "handing-over", "ended"}

func (s State) String() string { return stateNames[s] }

// MarshalText writes what String returns.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads it.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(stateNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("unknown state %q of a primary", b)
	}
	*s = State(i)
	return nil
}

// A Machine decides what the primary of a protected domain does next. It does
// no I/O, starts no goroutine and reads no clock: the same events always give
// the same actions, to be carried out in order.
type Machine struct {
	state State

	acked  uint64 // newest epoch the backup holds
	flight uint64 // epoch captured and sent, not yet acked; 0 if none
	taking uint64 // epoch being captured; 0 if none

	// exposed: the backup may hold a whole checkpoint, so that it may take
	// over. From here on only the arbiter or the backup itself can make this
	// host the only runner.
	exposed bool
	saving  bool // a save runs
	proven  bool // was protected before: failures are retried, not fatal

	strict    bool // the domain is to stay suspended from a checkpoint until its ack
	stays     bool // and does so after the checkpoint being captured
	suspended bool // it waits, suspended, for an ack

	// What Ending, Arbitrating and Detaching lead to.
	stopping bool  // to Ended instead of Connecting
	exitErr  error // with this error

	failover bool // hand over as soon as nothing is in flight
	handed   bool // the backup may have been told, by this protector or an earlier one, to run the domain
	paused   bool // the domain was paused by Pause, of this protector or an earlier one
	givingUp bool // an operator gave the copy here up, while a question is under way
}

// State returns the state.
func (m *Machine) State() State { return m.state }

// Holding reports whether the domain waits for the backup: it wrote more than the
// next checkpoint can carry.
func (m *Machine) Holding() bool {
	return m.paused && (m.state == Syncing || m.state == Protected)
}

// Acked returns the newest epoch that the backup holds; 0 if none.
func (m *Machine) Acked() uint64 { return m.acked }

// Idle reports whether the domain is protected and no checkpoint is under way.
func (m *Machine) Idle() bool { return m.state == Protected && m.flight == 0 && m.taking == 0 }

// Step takes an event and returns what to do. An event that means nothing in
// the present state, such as a repeated ack, gives no actions.
func (m *Machine) Step(ev Event) []Action {
	if _, ok := ev.(BackupRuns); ok && !m.exposed {
		// It has no checkpoint to run from: this is no word to destroy the domain by.
		ev = BackupLost{errRunsNothing}
	}
	// What means the same in every state.
	switch ev := ev.(type) {
	case Captured:
		if ev.Epoch != m.taking {
			panic(fmt.Sprintf("xlft: captured epoch %d while taking %d", ev.Epoch, m.taking))
		}
		m.taking, m.flight = 0, ev.Epoch
		m.exposed = true
		m.suspended, m.stays = m.stays, false
	case SaveEnded:
		m.saving, m.taking = false, 0
		m.suspended, m.stays = false, false // the save has resumed the domain
	case Paced:
		m.strict = ev.Strict
	case Acked:
		if m.flight == 0 || ev.Epoch != m.flight {
			return nil // a repeat, of an earlier session, or of an epoch not sent whole
		}
		m.acked, m.flight = ev.Epoch, 0
	}
	switch m.state {
	case Connecting:
		return m.stepConnecting(ev)
	case Recovering:
		return m.stepRecovering(ev)
	case Syncing, Protected:
		return m.stepRunning(ev)
	case Arbitrating, Blocked:
		return m.stepArbitrating(ev)
	case Ending:
		return m.stepEnding(ev)
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
		m.proven = ev.Proven
		m.paused = ev.Paused
		switch {
		case ev.Yielded:
			return m.yield()
		case ev.Held:
			m.state = Recovering
			m.proven, m.handed = true, ev.Handed
			return []Action{AskOwner{}}
		}
		// A protector that died after all was decided may have left its gate
		// holding, and the domain paused.
		return append(append([]Action{ReleaseAll{}}, m.unpause()...), Connect{})
	case Connected:
		m.state = Syncing
		m.acked, m.flight, m.taking = 0, 0, 0
		m.exposed, m.saving = false, false
		m.suspended, m.stays = false, false
		m.failover = false
		return []Action{SyncDisks{}}
	case ConnectFailed:
		if !m.proven {
			return m.end(ev.Err)
		}
		return []Action{RetryLater{Failed: true}}
	case MovesOn:
		return m.end(ev.Err)
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
		case ev.Role == wire.RoleRunning:
			return m.yield()
		case ev.Role == wire.RoleNone:
			return m.alone()
		}
		m.state = Arbitrating
		return []Action{Claim{Handed: m.handed}}
	case Trigger, GateFailed:
		return m.halt(ev)
	case StopAsked:
		m.stopping = true
	case GuestEnded:
		m.guestEnded(ev)
	}
	return nil
}

// halt keeps the domain from sending: its output is held until it is known who owns
// the domain, and the gate is full, or holds nothing.
func (m *Machine) halt(ev Event) []Action {
	if t, ok := ev.(Trigger); ok && t.Why != WhyFull || m.paused {
		return nil
	}
	m.paused = true
	return []Action{Pause{}}
}

// guestEnded: the domain has ended, which is said once. What is under way leads
// to the end of protection.
func (m *Machine) guestEnded(ev GuestEnded) {
	m.stopping, m.exitErr = true, fmt.Errorf("%w: %s", xlft.ErrGuestEnded, ev.Why)
}

// stepRunning is Syncing and Protected: a save runs and the backup listens.
func (m *Machine) stepRunning(ev Event) []Action {
	switch ev := ev.(type) {
	case DisksSynced:
		m.taking, m.saving = 1, true
		return []Action{BeginSave{}}
	case DisksLost:
		m.giveUp(ev.Err)
		return m.askDestroy()
	case GateFailed:
		m.giveUp(ev.Err)
		return m.askDestroy()
	case DomainChanged:
		m.giveUp(ev.Err)
		return m.askDestroy()
	case Trigger:
		if ev.Why == WhyFull && m.flight != 0 && !m.paused && !m.suspended {
			// What the domain writes now would not fit into the next checkpoint.
			m.paused = true
			return []Action{Pause{}}
		}
		return m.checkpoint(ev.Why)
	case Paced:
		if !m.strict {
			return m.resume() // with its output held, as in any mode that is not strict
		}
	case Captured:
		return []Action{Send{ev.Epoch}}
	case Acked:
		if m.state == Syncing {
			m.state = Protected
			m.proven = true
		}
		acts := m.release(ev.Epoch)
		full := m.paused
		acts = append(acts, m.unpause()...)
		switch {
		case m.failover:
			acts = append(acts, m.handOver()...)
		case full:
			acts = append(acts, m.checkpoint(WhyFull)...)
		}
		return acts
	case BackupLost:
		m.giveUp(ev.Err)
		return m.lost()
	case ReplicaDestroyed:
		m.giveUp(ev.Err)
		return m.detach()
	case BackupRuns:
		return m.yield()
	case SaveEnded:
		// The save failed: the domain runs and its replica grows old. The held
		// output may go once the backup has destroyed the replica.
		m.giveUp(ev.Err)
		return m.askDestroy()
	case StopAsked:
		m.stopping = true
		return m.askDestroy()
	case GuestEnded:
		m.guestEnded(ev)
		return m.askDestroy()
	case FailoverAsked:
		m.failover = true
		if m.state == Protected && m.flight == 0 && m.taking == 0 {
			return m.handOver()
		}
	}
	return nil
}

// errRunsNothing: a peer does not keep to the protocol.
var errRunsNothing = errors.New("the backup says that it runs the domain, and has no checkpoint of it")

// giveUp makes the first start fail as a whole; later failures are retried.
func (m *Machine) giveUp(err error) {
	if !m.proven {
		m.stopping, m.exitErr = true, err
	}
}

// checkpoint takes the next epoch unless one is in flight: a gate holds one
// sealed epoch only, so a slow backup stretches the epoch.
func (m *Machine) checkpoint(why Why) []Action {
	if m.state != Protected || m.flight != 0 || m.taking != 0 {
		return nil
	}
	m.taking, m.stays = m.acked+1, m.strict
	return []Action{Checkpoint{Epoch: m.taking, Why: why, Strict: m.stays}}
}

// release lets an acknowledged epoch out, and then the domain run, if it waited for
// that: nothing that it does comes before the output of what it did.
func (m *Machine) release(epoch uint64) []Action {
	return append([]Action{Release{epoch}}, m.resume()...)
}

// resume ends the wait of a strict checkpoint, if there is one.
func (m *Machine) resume() []Action {
	if !m.suspended {
		return nil
	}
	m.suspended = false
	return []Action{Resume{}}
}

func (m *Machine) handOver() []Action {
	m.state = HandingOver
	m.taking = m.acked + 1
	return []Action{Checkpoint{Epoch: m.taking, Why: WhySwitchOver, Final: true}}
}

func (m *Machine) stepHandingOver(ev Event) []Action {
	switch ev := ev.(type) {
	case Captured:
		return []Action{Send{ev.Epoch}}
	case Acked:
		// The epoch's output may go: the backup runs on from here or not at all.
		m.handed = true
		return []Action{Release{ev.Epoch}, HandOver{ev.Epoch}}
	case BackupRuns:
		m.state = Ended
		// Destroy first, which records who runs the domain: a successor that
		// knew only of the next generation would let the output out.
		return []Action{Destroy{}, NextGeneration{}, EndSave{}, HangUp{}, Exit{SwitchedOver, nil}}
	case BackupLost:
		return m.lost()
	case ReplicaDestroyed:
		return m.detach()
	case SaveEnded:
		m.exitErr = ev.Err
		return m.askDestroy()
	case NotDrained:
		m.handed = false
		return m.askDestroy()
	case GateFailed:
		if m.handed {
			return nil // the domain is suspended, and all that it sent has left
		}
		m.exitErr = ev.Err
		return m.askDestroy()
	case DisksLost:
		if m.handed {
			return nil // the backup takes the disks with the domain
		}
		m.exitErr = ev.Err
		return m.askDestroy()
	case StopAsked:
		m.stopping = true // should the switch-over fail
	case GuestEnded:
		m.guestEnded(ev)
		return m.askDestroy()
	}
	return nil
}

// lost: the backup is silent. Unless it may hold a whole checkpoint it can't
// have taken over; if it may, the arbiter decides.
func (m *Machine) lost() []Action {
	if !m.exposed {
		return m.detach()
	}
	// The connection stays open until the arbiter has answered: a backup that
	// lives would take the connection's end as a reason to claim the domain.
	m.state = Arbitrating
	return m.ask()
}

// ask finds out who owns the domain. A backup that has been told to run the
// domain may do so without the arbiter: the backup is asked first.
func (m *Machine) ask() []Action {
	if m.handed {
		return []Action{AskOwner{}}
	}
	return []Action{Claim{}}
}

func (m *Machine) stepArbitrating(ev Event) []Action {
	switch ev := ev.(type) {
	case Arbitrated:
		switch ev.Verdict {
		case xlft.Won:
			// Also against an operator who gave the copy up meanwhile: it may be the
			// only one now.
			return append([]Action{HangUp{AskDestroy: true}}, m.alone()...)
		case xlft.Lost:
			if !m.handed {
				return m.yield()
			}
			// The backup has claimed the domain that it was handed. Only the
			// backup itself can say whether the domain runs there.
		}
		if m.givingUp {
			return m.givenUp()
		}
		// In doubt the domain waits; nothing is guessed. The backup may claim.
		m.state = Blocked
		acts := []Action{HangUp{}}
		if !m.paused {
			m.paused = true
			acts = append(acts, Pause{})
		}
		return append(acts, RetryLater{})
	case Owner:
		switch {
		case ev.Role == wire.RoleRunning:
			return m.yield()
		case ev.Role == wire.RoleNone:
			return m.detach()
		case m.givingUp:
			return m.givenUp()
		}
		return []Action{Claim{Handed: true}}
	case Resolved:
		switch {
		case ev.Here:
			return append([]Action{HangUp{AskDestroy: true}}, m.alone()...)
		case m.state == Blocked:
			return m.givenUp()
		case m.givingUp:
			return nil
		}
		// What is under way may have been won: its answer comes first.
		m.givingUp = true
		return []Action{Withdraw{}}
	case ReplicaDestroyed:
		// The backup was only slow, and needs no arbiter to give the domain back.
		return m.detach()
	case NotDrained:
		m.handed = false // the backup was not told after all
	case Retry:
		m.state = Arbitrating
		return m.ask()
	case BackupRuns:
		return m.yield()
	case Trigger, GateFailed:
		return m.halt(ev)
	case StopAsked:
		m.stopping = true
	case GuestEnded:
		m.guestEnded(ev)
	}
	return nil
}

func (m *Machine) askDestroy() []Action {
	m.state = Ending
	return []Action{AskDestroy{}}
}

func (m *Machine) stepEnding(ev Event) []Action {
	switch ev := ev.(type) {
	case ReplicaDestroyed:
		return m.detach()
	case BackupRuns:
		return m.yield()
	case Acked:
		return m.release(ev.Epoch)
	case BackupLost:
		return m.lost()
	case Trigger, GateFailed:
		return m.halt(ev)
	case StopAsked:
		m.stopping = true
	case GuestEnded:
		m.guestEnded(ev)
	}
	return nil
}

// detach: this host is the only runner, by the backup's own word or because
// the backup never held a whole checkpoint.
func (m *Machine) detach() []Action {
	return append([]Action{HangUp{}}, m.alone()...)
}

// alone: this host is the only runner. The held output may go once the save has
// ended: until then a capture might seal the gate again.
func (m *Machine) alone() []Action {
	m.state, m.givingUp = Detaching, false
	acts := []Action{NextGeneration{}}
	acts = append(acts, m.unpause()...)
	if m.saving {
		return append(acts, EndSave{})
	}
	return append(acts, m.settle()...)
}

// unpause undoes a Pause, if there was one: Xen counts them.
func (m *Machine) unpause() []Action {
	if !m.paused {
		return nil
	}
	m.paused = false
	return []Action{Unpause{}}
}

func (m *Machine) stepDetaching(ev Event) []Action {
	switch ev := ev.(type) {
	case SaveEnded:
		return m.settle()
	case Trigger, GateFailed:
		return m.halt(ev)
	case StopAsked:
		m.stopping = true
	case GuestEnded:
		m.guestEnded(ev)
	}
	return nil
}

// settle is the end of every protection that leaves the domain running here.
func (m *Machine) settle() []Action {
	m.acked, m.flight, m.exposed, m.handed = 0, 0, false, false
	acts := append([]Action{ReleaseAll{}}, m.unpause()...)
	if m.stopping {
		return append(acts, m.end(m.exitErr)...)
	}
	m.state = Connecting
	m.exitErr = nil
	return append(acts, RetryLater{Failed: true})
}

// yield: the backup is the runner.
func (m *Machine) yield() []Action { return m.leave(Exit{TakenOver, ErrBackupRuns}) }

// givenUp: this host does not run the domain, by an operator's word.
func (m *Machine) givenUp() []Action { return m.leave(Exit{GivenUp, ErrGivenUp}) }

// leave ends the protection, and the copy here.
func (m *Machine) leave(exit Exit) []Action {
	m.state = Ended
	acts := []Action{Destroy{}}
	if m.saving {
		acts = append(acts, EndSave{})
	}
	return append(acts, HangUp{}, exit)
}

func (m *Machine) end(err error) []Action {
	m.state = Ended
	outcome := Failed
	switch {
	case err == nil:
		outcome = Stopped
	case errors.Is(err, xlft.ErrGuestEnded):
		outcome = DomainEnded
	}
	return []Action{CloseGate{}, Exit{outcome, err}}
}

package backup

import (
	"errors"
	"fmt"
	"slices"

	"xlft/xlft"
)

// State is the state of the backup's Machine.
type State int

// The states of a backup:
//
//	Syncing ──first whole epoch──► Ready ──primary lost──► Claiming ──won──► TakingOver ──► Running
//	   │                             │  └─────handover────────►│                  │
//	   └──primary lost, asked, failed┴──────► Destroyed ◄─lost─┴──────failed──────┘
const (
	// Syncing: no whole checkpoint is here yet.
	Syncing State = iota
	// Ready: a whole checkpoint is here; this host can take over.
	Ready
	// Claiming: the primary is silent, or hands over; the arbiter is asked. A
	// primary that wants the domain back meanwhile gets it, once the claim that is
	// under way has not been won.
	Claiming
	// TakingOver: the domain is this host's; it is being brought up.
	TakingOver
	// Running: the domain runs here.
	Running
	// Destroyed: the replica was destroyed.
	Destroyed
)

var stateNames = [...]string{"syncing", "ready", "claiming", "taking-over", "running", "destroyed"}

func (s State) String() string { return stateNames[s] }

// MarshalText writes what String returns.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads it.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(stateNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("unknown state %q of a backup", b)
	}
	*s = State(i)
	return nil
}

// Event is something that happened to a replica.
type Event interface{ isEvent() }

// The events of a Machine.
type (
	// Whole says that an epoch arrived whole and was verified, and that the
	// checkpoint before it has been fed to the restore.
	Whole struct{ Epoch uint64 }
	// PrimaryLost says that the primary is silent, or the connection broke.
	PrimaryLost struct{ Err error }
	// Handed says that the primary hands the domain over, to run on from this
	// epoch.
	Handed struct{ Epoch uint64 }
	// DestroyAsked is the wish of the primary, or of its successor after a crash,
	// to keep the domain: the replica is to be destroyed. Or, unless ByPrimary, the
	// wish of this host.
	DestroyAsked struct {
		Why       error
		ByPrimary bool
	}
	// Arbitrated is the arbiter's answer.
	Arbitrated struct{ Verdict xlft.Verdict }
	// Resolved is an operator's word on a domain that waits for the arbiter. Here: it
	// is to run on this host; otherwise the replica is given up.
	Resolved struct{ Here bool }
	// Retry says that the delay after an unreachable arbiter is over.
	Retry struct{}
	// ReplicaFailed says that the restore ended by itself, or that an epoch or a
	// disk's writes were not what they had to be.
	ReplicaFailed struct{ Err error }
	// Restored says that the domain is complete here and runs.
	Restored struct{}
)

func (Whole) isEvent()         {}
func (PrimaryLost) isEvent()   {}
func (Handed) isEvent()        {}
func (DestroyAsked) isEvent()  {}
func (Arbitrated) isEvent()    {}
func (Resolved) isEvent()      {}
func (Retry) isEvent()         {}
func (ReplicaFailed) isEvent() {}
func (Restored) isEvent()      {}

// Action is something a backup is to carry out.
type Action interface{ isAction() }

// The actions of a Machine, in order.
type (
	// Ack tells the primary that the epoch is safe here.
	Ack struct{ Epoch uint64 }
	// Feed gives the epoch to the restore.
	Feed struct{ Epoch uint64 }
	// Claim asks the arbiter for the domain; Handed if the primary handed it
	// over.
	Claim struct{ Handed bool }
	// Withdraw tells the arbiter that the claim is not wanted any more; it may be
	// won all the same.
	Withdraw struct{}
	// RetryLater asks for a Retry event.
	RetryLater struct{}
	// TakeOver records the ownership, completes the restore from the newest
	// whole checkpoint, runs the domain and announces it.
	TakeOver struct{}
	// Destroy destroys the replica; the primary is told why, if it listens. Begun:
	// a takeover had begun, and the primary is told only when the domain does not
	// run here for certain.
	Destroy struct {
		Why   error
		Begun bool
	}
	// SendRunning answers a HandOver.
	SendRunning struct{}
	// Exit ends the session, with an error unless all is well.
	Exit struct{ Err error }
)

func (Ack) isAction()         {}
func (Feed) isAction()        {}
func (Claim) isAction()       {}
func (Withdraw) isAction()    {}
func (RetryLater) isAction()  {}
func (TakeOver) isAction()    {}
func (Destroy) isAction()     {}
func (SendRunning) isAction() {}
func (Exit) isAction()        {}

// Reasons of a replica's end.
var (
	ErrNoCheckpoint = errors.New("the primary was lost before the first whole checkpoint")
	ErrArbiterOther = errors.New("the arbiter gave the domain to the primary")
	ErrGivenUp      = errors.New("an operator gave the replica up")
	ErrTakeover     = errors.New("takeover failed: the domain runs nowhere")
)

// A Machine decides what the backup of a domain does next. It does no I/O,
// starts no goroutine and reads no clock: the same events always give the same
// actions, to be carried out in order.
type Machine struct {
	state State
	acked uint64 // newest whole epoch

	handed    bool  // the primary handed the domain over
	asking    bool  // a claim is under way
	reclaimed error // why the primary wants the domain back, if it does
}

// State returns the state.
func (m *Machine) State() State { return m.state }

// Acked returns the newest whole epoch; 0 if none.
func (m *Machine) Acked() uint64 { return m.acked }

// Step takes an event and returns what to do.
func (m *Machine) Step(ev Event) []Action {
	switch m.state {
	case Syncing, Ready:
		return m.stepReceiving(ev)
	case Claiming:
		return m.stepClaiming(ev)
	case TakingOver:
		return m.stepTakingOver(ev)
	}
	return nil
}

func (m *Machine) stepReceiving(ev Event) []Action {
	switch ev := ev.(type) {
	case Whole:
		if ev.Epoch != m.acked+1 {
			return m.destroy(fmt.Errorf("epoch %d after epoch %d", ev.Epoch, m.acked))
		}
		m.acked = ev.Epoch
		if m.state == Syncing {
			// The restore has the first epoch already: it went there as it
			// arrived.
			m.state = Ready
			return []Action{Ack{ev.Epoch}}
		}
		return []Action{Ack{ev.Epoch}, Feed{ev.Epoch}}
	case PrimaryLost:
		if m.state == Syncing {
			return m.destroy(fmt.Errorf("%w: %w", ErrNoCheckpoint, ev.Err))
		}
		return m.claim()
	case Handed:
		if ev.Epoch != m.acked || m.state != Ready {
			return m.destroy(fmt.Errorf("asked to run from epoch %d, but the newest here is %d", ev.Epoch, m.acked))
		}
		m.handed = true
		return m.claim()
	case DestroyAsked:
		return m.destroy(ev.Why)
	case ReplicaFailed:
		return m.destroy(ev.Err)
	}
	return nil
}

func (m *Machine) claim() []Action {
	m.state, m.asking = Claiming, true
	return []Action{Claim{m.handed}}
}

func (m *Machine) stepClaiming(ev Event) []Action {
	switch ev := ev.(type) {
	case Arbitrated:
		m.asking = false
		switch {
		case ev.Verdict == xlft.Won:
			m.state = TakingOver
			return []Action{TakeOver{}}
		case ev.Verdict == xlft.Lost:
			return m.destroy(ErrArbiterOther)
		case m.reclaimed != nil:
			return m.destroy(m.reclaimed)
		}
		return []Action{RetryLater{}}
	case Retry:
		return m.claim()
	case DestroyAsked:
		if !ev.ByPrimary {
			return nil // the replica may be all that is left of the domain
		}
		if m.asking {
			if m.reclaimed != nil {
				return nil
			}
			m.reclaimed = ev.Why
			return []Action{Withdraw{}}
		}
		return m.destroy(ev.Why)
	case Resolved:
		switch {
		case m.reclaimed != nil:
			return nil // the primary is heard, and has the first word
		case ev.Here:
			m.state = TakingOver
			return []Action{Withdraw{}, TakeOver{}}
		case m.asking:
			// What is under way may have been won: its answer comes first.
			m.reclaimed = ErrGivenUp
			return []Action{Withdraw{}}
		}
		return m.destroy(ErrGivenUp)
	case ReplicaFailed:
		// The claim may still be won: then this host owns a domain that it
		// can't run, and says so.
		m.state = Destroyed
		return []Action{Withdraw{}, Destroy{ev.Err, false}, Exit{fmt.Errorf("%w: %w", ErrTakeover, ev.Err)}}
	}
	return nil
}

func (m *Machine) stepTakingOver(ev Event) []Action {
	switch ev := ev.(type) {
	case Restored:
		m.state = Running
		return []Action{SendRunning{}, Exit{nil}}
	case ReplicaFailed:
		m.state = Destroyed
		return []Action{Destroy{ev.Err, true}, Exit{fmt.Errorf("%w: %w", ErrTakeover, ev.Err)}}
	}
	return nil
}

func (m *Machine) destroy(why error) []Action {
	m.state = Destroyed
	return []Action{Destroy{why, false}, Exit{why}}
}

package backup

import (
	"errors"
	"fmt"

	"xlft/xlft"
)

// StandbyState is what a backup's StandbyMachine is at.
type StandbyState int

// Filling ──first whole epoch──► Ready ──primary lost──► Claiming ──won──► TakingOver ──► Running
//
//	│                             │  └─────handover────────►│               │
//	└──lost, dropped, failed──────┴────────► Gone ◄──lost───┘      failed───┘
const (
	// Filling: no whole checkpoint is here yet.
	Filling StandbyState = iota
	// Ready: a whole checkpoint is here.
	Ready
	// Claiming: the primary is silent, or hands over; the arbiter is asked.
	Claiming
	// TakingOver: the domain is this host's; it is being brought up.
	TakingOver
	// Running: it runs here.
	Running
	// Gone: the replica was destroyed.
	Gone
)

var standbyNames = [...]string{"filling", "ready", "claiming", "taking-over", "running", "gone"}

func (s StandbyState) String() string { return standbyNames[s] }

// StandbyEvent is something that happened to a replica.
type StandbyEvent interface{ isStandbyEvent() }

// The events of a StandbyMachine.
type (
	// Whole: an epoch arrived whole and was verified, and the checkpoint
	// before it has been fed to the restore.
	Whole struct{ Epoch uint64 }
	// PrimaryLost: silence, or a broken connection.
	PrimaryLost struct{ Err error }
	// Handed: the primary gives the domain up, in favour of this epoch.
	Handed struct{ Epoch uint64 }
	// DropAsked: the primary, or its successor after a crash, keeps the
	// domain; the replica shall go.
	DropAsked struct{ Why error }
	// Claimed is the arbiter's answer.
	Claimed struct{ Verdict xlft.Verdict }
	// RetryClaim: the delay after an unreachable arbiter is over.
	RetryClaim struct{}
	// ReplicaFailed: the restore ended by itself, or an epoch was not what it
	// had to be.
	ReplicaFailed struct{ Err error }
	// Restored: the domain is complete here and runs.
	Restored struct{}
)

func (Whole) isStandbyEvent() {}

func (PrimaryLost) isStandbyEvent() {}

func (Handed) isStandbyEvent() {}

func (DropAsked) isStandbyEvent() {}

func (Claimed) isStandbyEvent() {}

func (RetryClaim) isStandbyEvent() {}

func (ReplicaFailed) isStandbyEvent() {}

func (Restored) isStandbyEvent() {}

// StandbyAction is something a backup is to carry out.
type StandbyAction interface{ isStandbyAction() }

// The actions of a StandbyMachine, in order.
type (
	// Ack tells the primary that the epoch is safe here.
	Ack struct{ Epoch uint64 }
	// Feed gives the epoch to the restore.
	Feed struct{ Epoch uint64 }
	// Claim asks the arbiter for the domain; Handed if the primary gave it up.
	Claim struct{ Handed bool }
	// ClaimLater asks for a RetryClaim event.
	ClaimLater struct{}
	// TakeOver records the ownership, completes the restore from the newest
	// whole checkpoint, runs the domain and announces it.
	TakeOver struct{}
	// Discard destroys the replica; the primary is told why, if it listens.
	Discard struct{ Why error }
	// SayRunning answers a HandOver.
	SayRunning struct{}
	// Finish ends the standby, with an error unless all is well.
	Finish struct{ Err error }
)

func (Ack) isStandbyAction() {}

func (Feed) isStandbyAction() {}

func (Claim) isStandbyAction() {}

func (ClaimLater) isStandbyAction() {}

func (TakeOver) isStandbyAction() {}

func (Discard) isStandbyAction() {}

func (SayRunning) isStandbyAction() {}

func (Finish) isStandbyAction() {}

// Reasons of a replica's end.
var (
	ErrNoCheckpoint = errors.New("the primary was lost before the first whole checkpoint")
	ErrArbiterOther = errors.New("the arbiter gave the domain to the primary")
	ErrTakeover     = errors.New("takeover failed: the domain runs nowhere")
)

// A StandbyMachine decides what the backup of a domain does next. Like
// Machine it is a pure function of its events.
type StandbyMachine struct {
	state StandbyState
	acked uint64 // newest whole epoch

	handed bool // the primary gave the domain up
}

// State returns the state.
func (m *StandbyMachine) State() StandbyState { return m.state }

// Acked returns the newest whole epoch; 0 if none.
func (m *StandbyMachine) Acked() uint64 { return m.acked }

// Step takes an event and returns what to do.
func (m *StandbyMachine) Step(ev StandbyEvent) []StandbyAction {
	switch m.state {
	case Filling, Ready:
		return m.stepReceiving(ev)
	case Claiming:
		return m.stepClaiming(ev)
	case TakingOver:
		return m.stepTakingOver(ev)
	}
	return nil
}

func (m *StandbyMachine) stepReceiving(ev StandbyEvent) []StandbyAction {
	switch ev := ev.(type) {
	case Whole:
		if ev.Epoch != m.acked+1 {
			return m.gone(fmt.Errorf("epoch %d after epoch %d", ev.Epoch, m.acked))
		}
		m.acked = ev.Epoch
		if m.state == Filling {
			// The first epoch went to the restore as it came: until it is
			// whole there is nothing to take over from.
			m.state = Ready
			return []StandbyAction{Ack{ev.Epoch}}
		}
		return []StandbyAction{Ack{ev.Epoch}, Feed{ev.Epoch}}
	case PrimaryLost:
		if m.state == Filling {
			return m.gone(fmt.Errorf("%w: %w", ErrNoCheckpoint, ev.Err))
		}
		m.state = Claiming
		return []StandbyAction{Claim{}}
	case Handed:
		if ev.Epoch != m.acked || m.state != Ready {
			return m.gone(fmt.Errorf("asked to run from epoch %d, but the newest here is %d", ev.Epoch, m.acked))
		}
		m.state, m.handed = Claiming, true
		return []StandbyAction{Claim{Handed: true}}
	case DropAsked:
		return m.gone(ev.Why)
	case ReplicaFailed:
		return m.gone(ev.Err)
	}
	return nil
}

func (m *StandbyMachine) stepClaiming(ev StandbyEvent) []StandbyAction {
	switch ev := ev.(type) {
	case Claimed:
		switch {
		case ev.Verdict == xlft.Won:
			m.state = TakingOver
			return []StandbyAction{TakeOver{}}
		case ev.Verdict == xlft.Lost:
			return m.gone(ErrArbiterOther)
		}
		return []StandbyAction{ClaimLater{}}
	case RetryClaim:
		return []StandbyAction{Claim{m.handed}}
	case ReplicaFailed:
		// The claim may still be won: then this host owns a domain that it
		// can't run, and says so.
		m.state = Gone
		return []StandbyAction{Discard{ev.Err}, Finish{fmt.Errorf("%w: %w", ErrTakeover, ev.Err)}}
	}
	return nil
}

func (m *StandbyMachine) stepTakingOver(ev StandbyEvent) []StandbyAction {
	switch ev := ev.(type) {
	case Restored:
		m.state = Running
		return []StandbyAction{SayRunning{}, Finish{nil}}
	case ReplicaFailed:
		m.state = Gone
		return []StandbyAction{Discard{ev.Err}, Finish{fmt.Errorf("%w: %w", ErrTakeover, ev.Err)}}
	}
	return nil
}

func (m *StandbyMachine) gone(why error) []StandbyAction {
	m.state = Gone
	return []StandbyAction{Discard{why}, Finish{why}}
}

package primary

import (
	"errors"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// Event is something that happened to a primary.
type Event interface{ isEvent() }

// The events of a Machine.
type (
	// Start is the first event. Held: an earlier protector left the domain's
	// output held. Handed: the earlier protector may have told the backup to
	// run the domain. Yielded: it knew that the backup runs the domain. Paused: it
	// left the domain paused. Proven: it had the domain protected before.
	Start struct{ Held, Handed, Yielded, Paused, Proven bool }
	// Connected says that the backup accepted the offer.
	Connected struct{}
	// DisksSynced says that the backup's disks are equal to this host's.
	DisksSynced struct{}
	// DisksLost says that a disk is not replicated any more.
	DisksLost struct{ Err error }
	// ConnectFailed says that the backup refused the offer, or could not be
	// reached.
	ConnectFailed struct{ Err error }
	// MovesOn says that the lost backup was waited for long enough: another host is to
	// be the backup, of a session to come.
	MovesOn struct{ Err error }
	// Owner is the backup's answer to AskOwner: RoleReplica if the backup does
	// not know yet, "" if it could not be asked.
	Owner struct{ Role wire.Role }
	// Trigger asks for a checkpoint; with WhyFull, also for a halt of the domain if
	// the checkpoint can't be taken yet.
	Trigger struct{ Why Why }
	// Paced says how checkpoints are taken from now on. Strict: the domain stays
	// suspended until the backup has acknowledged them.
	Paced struct{ Strict bool }
	// Captured says that the checkpoint is in memory here. The domain runs again
	// unless the checkpoint was a final or a strict one.
	Captured struct{ Epoch uint64 }
	// GateFailed says that a gate does not hold what it has to, or that nothing
	// begins a checkpoint any more.
	GateFailed struct{ Err error }
	// DomainChanged says that the domain is not what the backup was offered.
	DomainChanged struct{ Err error }
	// SaveEnded says that the save has ended. The domain, if there still is one,
	// runs.
	SaveEnded struct{ Err error }
	// Acked says that the backup holds all of the checkpoint, verified.
	Acked struct{ Epoch uint64 }
	// BackupLost says that the backup is silent, or the connection broke.
	BackupLost struct{ Err error }
	// ReplicaDestroyed says that the backup destroyed its replica, which will
	// never run.
	ReplicaDestroyed struct{ Err error }
	// Arbitrated is the arbiter's answer to Claim.
	Arbitrated struct{ Verdict xlft.Verdict }
	// BackupRuns says that the backup has taken over, after a HandOver or by
	// itself.
	BackupRuns struct{}
	// Retry says that the delay of a RetryLater is over.
	Retry struct{}
	// StopAsked is an operator's wish to end protection.
	StopAsked struct{}
	// FailoverAsked is an operator's wish to move the domain to the backup.
	FailoverAsked struct{}
	// Resolved is an operator's word on a domain that waits for a decision. Here: it
	// is to run on this host; otherwise the copy here is given up.
	Resolved struct{ Here bool }
	// NotDrained says that the backup has not been told to run the domain:
	// released output has not left, or the switch-over could not be recorded.
	NotDrained struct{ Err error }
	// GuestEnded says that the domain shut down, crashed or was destroyed by
	// somebody else.
	GuestEnded struct{ Why string }
)

func (Start) isEvent()            {}
func (Connected) isEvent()        {}
func (MovesOn) isEvent()          {}
func (DisksSynced) isEvent()      {}
func (DisksLost) isEvent()        {}
func (GateFailed) isEvent()       {}
func (DomainChanged) isEvent()    {}
func (ConnectFailed) isEvent()    {}
func (Owner) isEvent()            {}
func (Trigger) isEvent()          {}
func (Paced) isEvent()            {}
func (Captured) isEvent()         {}
func (SaveEnded) isEvent()        {}
func (Acked) isEvent()            {}
func (BackupLost) isEvent()       {}
func (ReplicaDestroyed) isEvent() {}
func (Arbitrated) isEvent()       {}
func (BackupRuns) isEvent()       {}
func (Retry) isEvent()            {}
func (StopAsked) isEvent()        {}
func (FailoverAsked) isEvent()    {}
func (Resolved) isEvent()         {}
func (NotDrained) isEvent()       {}
func (GuestEnded) isEvent()       {}

// Action is something a primary's Session is to carry out.
type Action interface{ isAction() }

// The actions of a Machine, to be carried out in order.
type (
	// Connect calls the backup and offers it the domain.
	Connect struct{}
	// AskOwner asks the backup for the domain back.
	AskOwner struct{}
	// Withdraw tells the arbiter that the claim under way is not wanted any more; it
	// may be won all the same.
	Withdraw struct{}
	// SyncDisks begins the session, with the first copy of the disks.
	SyncDisks struct{}
	// BeginSave starts the save with its first, live checkpoint.
	BeginSave struct{}
	// Checkpoint lets the save take the next checkpoint. After a Final one the
	// domain stays suspended, after a Strict one it does until Resume.
	Checkpoint struct {
		Epoch  uint64
		Why    Why
		Final  bool
		Strict bool
	}
	// Send puts the captured checkpoint on the wire.
	Send struct{ Epoch uint64 }
	// Release lets the epoch's output out.
	Release struct{ Epoch uint64 }
	// Resume lets the domain run on after a strict checkpoint.
	Resume struct{}
	// HandOver tells the backup to run the domain from the epoch on.
	HandOver struct{ Epoch uint64 }
	// AskDestroy tells the backup to destroy its replica.
	AskDestroy struct{}
	// Claim asks the arbiter for the right to run alone; Handed if the backup
	// has been told to run the domain.
	Claim struct{ Handed bool }
	// EndSave ends the save; SaveEnded follows. The domain runs afterwards.
	EndSave struct{}
	// Pause stops the domain where it is.
	Pause struct{}
	// Unpause lets the domain run again.
	Unpause struct{}
	// ReleaseAll lets all output out and stops holding it.
	ReleaseAll struct{}
	// NextGeneration counts a change of owner, and records it.
	NextGeneration struct{}
	// HangUp closes the connections to the backup. With AskDestroy the backup is
	// first told to destroy its replica, should it still listen: a backup that
	// was only slow must not take the end of the connection for the primary's
	// death.
	HangUp struct{ AskDestroy bool }
	// RetryLater asks for a Retry event. Failed: what is tried again failed; each
	// such wait in a row is longer.
	RetryLater struct{ Failed bool }
	// Destroy destroys the domain here and drops the output held.
	Destroy struct{}
	// CloseGate takes the gate down without losing a packet.
	CloseGate struct{}
	// Exit ends the session. Err is nil if an operator asked for the end.
	Exit struct {
		Outcome Outcome
		Err     error
	}
)

func (Connect) isAction()        {}
func (AskOwner) isAction()       {}
func (Withdraw) isAction()       {}
func (SyncDisks) isAction()      {}
func (BeginSave) isAction()      {}
func (Checkpoint) isAction()     {}
func (Send) isAction()           {}
func (Release) isAction()        {}
func (Resume) isAction()         {}
func (HandOver) isAction()       {}
func (AskDestroy) isAction()     {}
func (Claim) isAction()          {}
func (EndSave) isAction()        {}
func (Pause) isAction()          {}
func (Unpause) isAction()        {}
func (ReleaseAll) isAction()     {}
func (NextGeneration) isAction() {}
func (HangUp) isAction()         {}
func (RetryLater) isAction()     {}
func (Destroy) isAction()        {}
func (CloseGate) isAction()      {}
func (Exit) isAction()           {}

// Outcome is how a session ended.
type Outcome string

const (
	Stopped      Outcome = "stopped"       // as asked; the domain runs here, unprotected
	SwitchedOver Outcome = "switched-over" // as asked; the backup runs the domain
	TakenOver    Outcome = "taken-over"    // ErrBackupRuns
	GivenUp      Outcome = "given-up"      // ErrGivenUp
	DomainEnded  Outcome = "domain-ended"  // xlft.ErrGuestEnded
	Failed       Outcome = "failed"        // the domain runs here, unprotected
)

// Errors with which a Session ends.
var (
	// ErrBackupRuns: the backup runs the domain; the local copy was destroyed
	// before any of its held output left.
	ErrBackupRuns = errors.New("the backup runs the domain; the local copy was destroyed and its held output dropped")
	// ErrGivenUp: an operator said so ("xl ft-resolve").
	ErrGivenUp = errors.New("an operator gave the copy of the domain here up; it was destroyed and its held output dropped")
	// ErrBothRun: the backup says that it runs the domain, while this host
	// rightfully runs it too. Only an operator can choose which one goes on.
	ErrBothRun = errors.New("the backup says it runs the domain too: split brain")
)

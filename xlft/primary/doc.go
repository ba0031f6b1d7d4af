// Package primary is the program of the host that runs a protected domain: it
// takes checkpoints, sends them to the backup, and releases the domain's output
// when they are acknowledged.
//
// [Machine] decides and does nothing; [Session] carries out what it decides, on
// one goroutine. A link is the connection to one backup, a save is one run of
// the guest's checkpointed save, a spool stands between the two so that a
// suspended domain never waits for the network, and a trigger says when a
// checkpoint is due.
//
// The one rule a caller must know: when Run has returned, the domain runs here
// and its output flows, or it is gone from here. Until then only the Session
// suspends, resumes, pauses or destroys the domain.
package primary

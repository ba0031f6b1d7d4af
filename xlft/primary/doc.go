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
// The one rule a caller must know: until Run has returned only the Session
// suspends, resumes, pauses or destroys the domain. Then the domain runs here and
// its output flows, or it is gone from here. What could not be read, recorded or
// destroyed is in the log and stays as it was: held output stays held.
package primary

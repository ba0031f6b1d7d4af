// Package backup is the program of the host that holds replicas: it receives
// checkpoints, acknowledges those that are whole, feeds them to a restore, and
// runs the domain on when its primary is lost.
//
// [Receiver] takes connections and admits domains. Each domain has a session,
// whose [Machine] decides and does nothing. A feeder gives whole checkpoints to
// the restore.
//
// The one rule a caller must know: a replica runs only after the arbiter gave
// the domain to this host. Whatever else ends a session destroys the replica.
package backup

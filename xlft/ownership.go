package xlft

// A Store keeps what a host must remember of its domains through a crash.
// Both methods return when the disk has it.
type Store interface {
	// Load returns the zero Ownership if nothing is known of the domain.
	Load(domain string) (Ownership, error)
	Save(domain string, o Ownership) error
}

// Ownership is what a host knows of who owns a domain.
type Ownership struct {
	Generation uint64   `json:"generation"`
	Role       HostRole `json:"role"`
	Peer       string   `json:"peer"` // the other host's name in the config
	// UUID is the domain's. A record of another UUID is of another domain that
	// had the name.
	UUID string `json:"uuid,omitempty"`
	// Took is the newest generation in which the domain came to run here by a
	// takeover. A host that ever owned a domain knows so in every later role: a
	// copy of that generation or an older one must not run elsewhere.
	Took uint64 `json:"took,omitempty"`
	// Exposed, on a primary: the backup may hold a whole checkpoint of this run
	// of the domain, so that it could take over.
	Exposed bool `json:"exposed,omitempty"`
	// Handed, on a primary: the backup may have been told to run the domain.
	Handed bool `json:"handed,omitempty"`
	// Proven, on a primary: this run of the domain was protected, and nobody ended
	// that: attempts to protect it again go on.
	Proven bool `json:"proven,omitempty"`
	// Paused, on a primary: this run of the domain was paused by its protector, or
	// was about to be. Xen counts pauses: whoever finds this undoes one, and no other.
	Paused bool `json:"paused,omitempty"`
	// Pending, on an owner: the takeover was begun, and whether the domain runs
	// here is found out by looking.
	Pending bool `json:"pending,omitempty"`
	// Instance, on a primary, tells this run of the domain from any other.
	Instance string `json:"instance,omitempty"`
}

// HostRole is what this host last was to a domain.
type HostRole string

const (
	HostNone    HostRole = ""
	HostPrimary HostRole = "primary" // protects it, or did
	HostBackup  HostRole = "backup"  // holds a replica, or did
	HostOwner   HostRole = "owner"   // took it over
	HostFailed  HostRole = "failed"  // won it, and could not run it
	HostYielded HostRole = "yielded" // gave it up to the peer
)

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
	// Exposed, on a primary: the backup may hold a whole checkpoint of this run
	// of the domain, so that it could take over.
	Exposed bool `json:"exposed,omitempty"`
	// Handed, on a primary: the backup may have been told to run the domain. On
	// an owner: the primary handed the domain over, and it is not yet known
	// whether the domain runs here.
	Handed bool `json:"handed,omitempty"`
	// Paused, on a primary: this run of the domain was paused by its protector.
	// Xen counts pauses: whoever finds this undoes one, and no other.
	Paused bool `json:"paused,omitempty"`
	// Instance, on a primary, tells this run of the domain from any other.
	Instance string `json:"instance,omitempty"`
}

// HostRole is what this host last was to a domain.
type HostRole string

const (
	HostNone    HostRole = ""
	HostPrimary HostRole = "primary" // protects it, or did
	HostOwner   HostRole = "owner"   // took it over
	HostYielded HostRole = "yielded" // gave it up to the peer
)

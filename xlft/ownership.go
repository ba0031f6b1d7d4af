package xlft

// A Store keeps what a host must remember of its domains through a crash.
// Both methods return when the disk has it.
type Store interface {
	// Load returns the zero Record if nothing is known of the domain.
	Load(domain string) (Record, error)
	Save(domain string, r Record) error
}

// Record is what a host knows of who owns a domain.
type Record struct {
	Generation uint64   `json:"generation"`
	Role       HostRole `json:"role"`
	Peer       string   `json:"peer"` // the other host's name in the config
	// Of a primary: the backup may hold a whole checkpoint of this run of the
	// domain.
	Exposed bool `json:"exposed,omitempty"`
	// Handed: it may have been told to run the domain. Of an owner: the primary
	// told it to, and it is not known yet whether it came to that.
	Handed   bool   `json:"handed,omitempty"`
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

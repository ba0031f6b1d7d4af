package xlft

import "strings"

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
	// Arbiter, on a primary that is exposed: what both hosts agreed on to decide in this
	// generation (ArbiterName). Another one could give the domain to both.
	Arbiter string `json:"arbiter,omitempty"`
	// Handed, on a primary: the backup may have been told to run the domain.
	Handed bool `json:"handed,omitempty"`
	// Begun, on a primary: a protector has begun with this run of the domain, and has
	// not ended. The domain may be suspended for it, or its output held.
	Begun bool `json:"begun,omitempty"`
	// Anew, on a primary: this run of the domain began after one that another host may have
	// taken over, and was not protected yet. All hosts are asked whether they run it.
	Anew bool `json:"anew,omitempty"`
	// Proven, on a primary: this run of the domain was protected, and nobody ended
	// that: attempts to protect it again go on.
	Proven bool `json:"proven,omitempty"`
	// Paused, on a primary: this run of the domain was paused by its protector, or
	// was about to be. Xen counts pauses: whoever finds this undoes one, and no other.
	Paused bool `json:"paused,omitempty"`
	// Pending, on an owner: the takeover was begun, and whether the domain came to run
	// here is found out by looking. If the host lost its power meanwhile nobody can
	// know: then the record stays, until the domain is here or is offered anew.
	Pending bool `json:"pending,omitempty"`
	// Instance, on a primary, tells this run of the domain from any other.
	Instance string `json:"instance,omitempty"`
}

// Left reports whether a protector that died with this record left something for its
// successor to do.
func (o Ownership) Left() bool {
	return o.Role == HostPrimary && (o.Exposed || o.Paused || o.Begun) || o.Role == HostYielded
}

// SameUUID compares the UUIDs of domains. Records of before 2026-11-27 have them
// without the zero of a byte below 0x10.
func SameUUID(a, b string) bool { return a == b || unpadded(a) == unpadded(b) }

// unpadded is a UUID as the earlier records have it.
func unpadded(u string) string {
	if len(u) != 36 {
		return u
	}
	var b strings.Builder
	for i := 0; i < len(u); {
		if u[i] == '-' {
			b.WriteByte('-')
			i++
			continue
		}
		if u[i] != '0' {
			b.WriteByte(u[i])
		}
		b.WriteByte(u[i+1])
		i += 2
	}
	return b.String()
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

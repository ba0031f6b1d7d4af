package diskserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A User of a disk is a domain's backend, or an operator.
type User struct {
	// Name is the backend's path in xenstore, such as
	// "/local/domain/0/backend/vbd/5/51712", or one of the names below.
	Name string
	// VM names what the backend's domain is a run of: a domain that is migrated to
	// its own host has two backends for a while, of one VM. "" if unknown.
	VM string
}

// Users that are no domain's backend.
const (
	Operator = "operator" // who called "xlft disk attach"
	socket   = "socket"   // clients of the socket
)

// users are who uses a disk as a block device, and which VM each is of.
type users map[string]string

// admit adds a user. Two users at once would damage what the disk has, as two
// domains that mount one file system do: a second one is refused, unless both
// are of one VM. Users of whom gone says that they are not there are forgotten.
func (u users) admit(who User, gone func(name string) bool) error {
	for name, vm := range u {
		switch {
		case name == who.Name || vm != "" && vm == who.VM:
		case gone(name):
			delete(u, name)
		default:
			return fmt.Errorf("in use by %s: a second user would damage it; %s ends that use", name, release(name))
		}
	}
	u[who.Name] = who.VM
	return nil
}

// release returns the command that ends a use.
func release(name string) string {
	if name == Operator {
		return `"xlft disk detach"`
	}
	if part := strings.Split(name, "/"); len(part) >= 4 {
		domid, device := part[len(part)-2], part[len(part)-1]
		return fmt.Sprintf(`"xl block-detach %s %s", or "xl destroy %s",`, domid, device, domid)
	}
	return `"xl block-detach"`
}

func (u users) String() string { return strings.Join(slices.Sorted(maps.Keys(u)), ", ") }

// An attachment is what AttachedFile says of a disk. Earlier versions wrote the
// number of the device alone: who uses it is not known then.
type attachment struct {
	Index int   `json:"index"`
	Users users `json:"users,omitempty"`
	// Sector is the size in bytes of the device's sectors; 0, which is what earlier
	// versions wrote: 512.
	Sector int `json:"sector,omitempty"`
}

func (a *attachment) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &a.Index); err == nil {
		return nil
	}
	type plain attachment
	return json.Unmarshal(b, (*plain)(a))
}

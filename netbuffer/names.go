package netbuffer

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ifbPrefix starts the names of a gate's ifbs: xlft<domid>.<vif>a and b. An e
// before the last letter marks the tap of an emulated interface, and an x the
// index of an interface that is not known as a vif. The longest name of a vif,
// xlft32751.9999a, fits ifNameSize.
const ifbPrefix = "xlft"

// ifNameSize is IFNAMSIZ of linux/if.h: a name's bytes and a NUL.
const ifNameSize = 16

var (
	vifName = regexp.MustCompile(`^vif(\d+)\.(\d+)(-emu)?$`)
	sysName = regexp.MustCompile(`^vif-(\d+)-(\d+)$`)
	ifbName = regexp.MustCompile(`^` + ifbPrefix + `(\d+)\.(\d+e?|x[0-9a-f]+)([ab])$`)
)

// ownerOf returns the domain and the number of a vif, by its name or by the
// xenbus device behind the interface. Both are empty for other interfaces. The
// number of an emulated interface's tap has an e behind it.
func ownerOf(name string) (domid, number string) {
	if m := vifName.FindStringSubmatch(name); m != nil {
		if m[3] != "" {
			return m[1], m[2] + "e"
		}
		return m[1], m[2]
	}
	dev, err := os.Readlink(filepath.Join("/sys/class/net", name, "device"))
	if err != nil {
		return "", ""
	}
	if m := sysName.FindStringSubmatch(filepath.Base(dev)); m != nil {
		return m[1], m[2]
	}
	return "", ""
}

// numberOf returns the number of the network device behind a vif, by its name or
// sysfs; -1 for other interfaces.
func numberOf(name string) int {
	_, number := ownerOf(name)
	if n, err := strconv.Atoi(number); err == nil {
		return n
	}
	return -1
}

// ifbFor returns the name that the two ifbs of an interface share, without the
// suffix. index is the interface's.
func ifbFor(domid uint32, name string, index int) (string, error) {
	_, n := ownerOf(name)
	if n == "" {
		n = fmt.Sprintf("x%x", index)
	}
	ifb := fmt.Sprintf("%s%d.%s", ifbPrefix, domid, n)
	if len(ifb)+1 >= ifNameSize {
		return "", fmt.Errorf("netbuffer: %s: name %s of its ifb is too long", name, ifb)
	}
	return ifb, nil
}

// suffix returns the name of the ifb that is queue 0 or 1.
func suffix(name string, queue int) string { return name + "ab"[queue:queue+1] }

// domainOf returns the domain whose gate has an ifb of this name, or "".
func domainOf(ifb string) (domid string) {
	if m := ifbName.FindStringSubmatch(ifb); m != nil {
		return m[1]
	}
	return ""
}

// An alias is the text that an ifb carries in the kernel (ip link set alias)
// for the next process.
type alias struct {
	vif      string // interface that the ifb belongs to
	holding  bool   // the gate holds
	ownQdisc bool   // the gate made the vif's clsact
}

const aliasPrefix = "xlft gate of "

func (a alias) String() string {
	s := aliasPrefix + a.vif
	if a.ownQdisc {
		s += ", own clsact"
	}
	if a.holding {
		s += ", holding"
	}
	return s
}

// aliasOf reads the text that String writes.
func aliasOf(text string) alias {
	text, _ = strings.CutPrefix(text, aliasPrefix)
	parts := strings.Split(text, ", ")
	return alias{
		vif:      parts[0],
		ownQdisc: slices.Contains(parts[1:], "own clsact"),
		holding:  slices.Contains(parts[1:], "holding"),
	}
}

package wire

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// ConnKind says what a connection is for.
type ConnKind string

const (
	KindControl ConnKind = "control" // one per session: offer, heartbeats, acks
	KindData    ConnKind = "data"    // one per session: epochs
	KindQuery   ConnKind = "query"   // one request and its answer
	KindDisk    ConnKind = "disk"    // one per disk of a session: what is written to it
)

// Hello is the first frame each way. The receiver answers with the version it
// chose in both fields and the features that both sides have.
type Hello struct {
	Magic      string   `json:"magic"` // "xlft"
	VersionMin int      `json:"version_min"`
	VersionMax int      `json:"version_max"`
	Features   []string `json:"features,omitempty"`
	Software   string   `json:"software"` // for the log only
	Kind       ConnKind `json:"kind"`
	// Session joins the connections of one session: 128 random bits in hex,
	// chosen by the primary.
	Session string `json:"session,omitempty"`
	// PageCache, on data connections: how many bytes of pages that were sent the side
	// keeps for FeatureLines. The answer has the smaller number; both sides keep that.
	PageCache int64 `json:"page_cache,omitempty"`
}

// Offer describes a domain that the primary wants to have protected.
type Offer struct {
	Domain     string `json:"domain"`
	UUID       string `json:"uuid"`
	Generation uint64 `json:"generation"`
	// Arbiter is the primary's arbiter, its kind and which one of that kind: both hosts
	// must have the same.
	Arbiter string `json:"arbiter"`
	// Config is libxl's JSON of the domain's configuration.
	Config json.RawMessage `json:"config"`
	// MaxMemKiB is what the backup needs free, without its own overhead.
	MaxMemKiB uint64 `json:"max_mem_kib"`
	// Pages is how many pages of 4 KiB the domain has; the save begins only while
	// it has as many.
	Pages uint64 `json:"pages,omitempty"`
	// XenVersion is "major.minor" of the primary's hypervisor.
	XenVersion string `json:"xen_version"`
	// FailureTimeout is the silence after which the backup suspects the primary.
	FailureTimeout time.Duration `json:"failure_timeout_ns"`
	// MaxEpoch is the largest checkpoint that the primary will send, in bytes,
	// after the first.
	MaxEpoch uint64 `json:"max_epoch_bytes"`
	// Disks are those that the backup keeps copies of.
	Disks []Disk `json:"disks,omitempty"`
	// NICs are the domain's network devices as this host has them.
	NICs []NIC `json:"nics,omitempty"`
	// CPUID is what the domain was told of its processor.
	CPUID []CPUIDLeaf `json:"cpuid,omitempty"`
}

// CPUIDLeaf is what the instruction CPUID answers for one leaf.
type CPUIDLeaf struct {
	Leaf uint32 `json:"leaf"`
	Sub  uint32 `json:"sub"` // NoSubleaf if the leaf has none
	A    uint32 `json:"a"`
	B    uint32 `json:"b"`
	C    uint32 `json:"c"`
	D    uint32 `json:"d"`
}

// NoSubleaf is Xen's XEN_CPUID_NO_SUBLEAF.
const NoSubleaf = ^uint32(0)

// NIC is a network device of a domain.
type NIC struct {
	DevID int `json:"devid"`
	// MTU of the device on the primary, in bytes; 0 if it is not known.
	MTU int `json:"mtu,omitempty"`
}

// Disk is a disk of a domain.
type Disk struct {
	VDev string `json:"vdev"` // such as "xvda"
	Size int64  `json:"size"` // bytes
	// Shared: both hosts see the same storage.
	Shared bool `json:"shared,omitempty"`
	// Sector is the size in bytes of a sector as the domain sees it; 0, which a host
	// says that knows nothing else: 512. Another size needs FeatureSectors.
	Sector int `json:"sector,omitempty"`
}

// DiskOpen begins the connection of a disk.
type DiskOpen struct {
	Disk
	// The generation of the primary's data and those that it came from, the newest
	// first. The backup refuses if its copy has another one. Not of shared storage.
	Data string   `json:"data,omitempty"`
	Past []string `json:"past,omitempty"`
}

// DiskReady says that the backup takes a disk's writes.
type DiskReady struct {
	// Journal is how many bytes of writes it holds back, at most.
	Journal int64 `json:"journal_bytes"`
	// The checkpoint that the backup's copy is consistent as of, if it is: an
	// epoch of an earlier session.
	MarkSession string `json:"mark_session,omitempty"`
	MarkEpoch   uint64 `json:"mark_epoch,omitempty"`
}

// Problem is one reason why a domain can't be protected.
type Problem struct {
	Host   string `json:"host,omitempty"` // the host that has it, as the primary calls that host; the primary fills it in
	What   string `json:"what"`           // what is wrong
	Advice string `json:"advice"`         // what to do about it
}

// CheckResult answers CHECK.
type CheckResult struct {
	Software string    `json:"software"`
	Problems []Problem `json:"problems"`
}

// OwnerQuery asks the backup whether it owns a domain in this generation or a
// newer one. With Reclaim set, a replica that does not run is destroyed before the
// answer, and will never run: the asker has the domain and wants it back.
type OwnerQuery struct {
	Domain string `json:"domain"`
	UUID   string `json:"uuid,omitempty"`
	// Generation is the asker's; 0 if its record is lost. Then only what really
	// runs or is held there counts.
	Generation uint64 `json:"generation"`
	Reclaim    bool   `json:"reclaim"`
	// Suspect: the asker is the domain's backup, and hears nothing of its protector.
	Suspect bool `json:"suspect,omitempty"`
	// Patience is how long the asker waits for the answer; an answer that is still
	// undecided comes in half of that.
	Patience time.Duration `json:"patience_ns,omitempty"`
}

// Role is what a host is to a domain.
type Role string

const (
	RoleNone    Role = "none"    // does not own it, and holds no replica of it
	RoleReplica Role = "replica" // undecided: holds a replica that may come to run
	RoleRunning Role = "running" // took it over in the asker's generation or later
)

// OwnerResult answers OWNER.
type OwnerResult struct {
	Role       Role   `json:"role"`
	Generation uint64 `json:"generation"`
	// Arbiter says why the answering host's arbiter could not decide against the asker
	// now; "" if it could, or is not asked.
	Arbiter string `json:"arbiter,omitempty"`
}

// ListResult answers LIST: what a host knows of domains that are protected, or were.
type ListResult struct {
	Host    string       `json:"host"`
	FreeKiB uint64       `json:"free_kib"` // of the hypervisor's memory
	Drained bool         `json:"drained,omitempty"`
	Domains []ListDomain `json:"domains"`
}

// ListDomain is a domain as "xl ft-list" has it.
type ListDomain struct {
	Domain     string `json:"domain"`
	Role       string `json:"role"`
	Peer       string `json:"peer"`
	State      string `json:"state"`
	Protected  bool   `json:"protected"`
	NoArbiter  string `json:"no_arbiter,omitempty"`
	Epoch      uint64 `json:"epoch"`
	Generation uint64 `json:"generation"`
}

// Code says why a peer refused, for programs.
type Code string

const (
	CodeVersion    Code = "version"    // no common protocol version
	CodeProtocol   Code = "protocol"   // the peer does not keep to the protocol
	CodeBusy       Code = "busy"       // the domain has a session already, or too many at once
	CodeUnfit      Code = "unfit"      // this host can't take the domain
	CodeRunning    Code = "running"    // this host runs the domain, or a domain of its name
	CodeReplica    Code = "replica"    // the replica failed here
	CodeStopping   Code = "stopping"   // this host stops receiving
	CodeDrained    Code = "drained"    // this host takes no replicas, as its operator asked
	CodeDestroyed  Code = "destroyed"  // the replica was destroyed as the primary asked
	CodeArbiter    Code = "arbiter"    // the arbiter gave the domain to the primary
	CodeGeneration Code = "generation" // a newer session took the domain's place, or this host knows a newer generation
	CodeDecider    Code = "decider"    // this host has another kind of arbiter
	CodeInternal   Code = "internal"   // an error of this host
)

// Refusal is a peer's no. It is an error.
type Refusal struct {
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
	// Generation is the newest that this host knows, with CodeGeneration.
	Generation uint64    `json:"generation,omitempty"`
	Problems   []Problem `json:"problems,omitempty"`
}

func (r *Refusal) Error() string {
	s := fmt.Sprintf("refused by peer: %s", Printable(r.Reason))
	for _, p := range r.Problems {
		s += "; " + Printable(p.What)
	}
	return s
}

// Printable returns what a peer says as it may be printed to a terminal, in one line.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '\uFFFD'
		}
		return r
	}, s)
}

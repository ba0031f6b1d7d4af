// Package config reads xlft's configuration, one TOML file, into validated
// values.
//
// The one rule a caller must know: what Parse returns needs no further check,
// and a key that it doesn't know is an error, never ignored.
package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// DefaultPath is where the configuration is looked for.
const DefaultPath = "/etc/xlft/xlft.toml"

// DefaultRunDir is RunDir unless the configuration says otherwise.
const DefaultRunDir = "/run/xlft"

// Config is a validated configuration.
type Config struct {
	Name     string // this host, as its peers call it
	Identity string // directory of host.crt and host.key
	StateDir string // survives a reboot
	RunDir   string // sockets

	HealthCommand  string        // says whether this host is sound; "": nobody asks
	HealthInterval time.Duration // between two questions

	Listen           string // host:port
	CheckpointMemory uint64 // bytes of one checkpoint in memory, here and there
	PageCache        uint64 // bytes of pages that were sent, kept here and there for each domain; 0: none
	DiskJournal      uint64 // bytes of a disk's writes held back here in memory, for each disk
	DiskJournalFile  uint64 // and beyond that in a file; 0: none
	DurableAck       bool   // an epoch's disk writes are on stable storage here before it is acked

	Arbiter Arbiter
	Peers   map[string]Peer
	Domains map[string]Domain
	Default Domain
}

// Arbiter says who decides after a failure.
type Arbiter struct {
	Type             string // one of ArbiterTypes
	AcceptSplitBrain bool
	FenceAfter       time.Duration // a suspected host is asked for so long before it is fenced
	CheckInterval    time.Duration // between two questions whether it could decide; 0: only ft-check asks
	Ping             []netip.Addr  // one of them has to answer a ping before this host claims a domain; none: no such rule
	Etcd             *Etcd         // nil if there is no such table
	File             *File         // the same
}

// Etcd is an etcd cluster that keeps claims.
type Etcd struct {
	Endpoints     []string      // URLs
	Prefix        string        // of the keys
	CA, Cert, Key string        // files; "" if unset
	Timeout       time.Duration // of one claim
}

// File is a directory that both hosts mount, and that keeps claims.
type File struct {
	Directory string
	Timeout   time.Duration // of one claim
}

// Peer is another host.
type Peer struct {
	Name        string
	Addresses   []string // host:port each, the preferred path first; one at least
	Fingerprint wire.Fingerprint
	Fence       *Fence // nil if it can't be fenced
}

// Fence is how a peer is powered off: by fence agents as ClusterLabs has them.
type Fence struct {
	// Levels are tried in turn until one succeeds. All agents of a level have to.
	Levels [][]FenceAgent
	Delay  time.Duration // before it is done by a host that does not run the domain
}

// FenceAgent is a program, and what it is told.
type FenceAgent struct {
	Agent   string // path
	Options map[string]string
	Timeout time.Duration // of one call
}

// Domain is how a domain is protected.
type Domain struct {
	Name string
	// Backups are peers' names, in the order in which they are asked to hold the copy.
	Backups   []string
	Protect   bool          // whenever it runs here
	MoveAfter time.Duration // a lost backup is waited for so long if there is another one
	xlft.Pacing
	FailureTimeout time.Duration
	AckTimeout     time.Duration
	SuspendTimeout time.Duration
	RetryDelay     time.Duration
	NetBuffer      uint64 // of memory for the held output of each network device, in bytes
	Compress       bool
	SyncRate       uint64          // bytes a second that the first copy of a disk compares; 0: no limit
	Disks          map[string]Disk // by virtual device, such as "xvda"
}

// Disk is this host's copy of a domain's disk.
type Disk struct {
	VDev   string
	Path   string // a file, a block device or a logical volume
	Direct bool   // bypass the kernel's page cache (O_DIRECT)
	Shared bool   // the other host sees the same storage
	Sector int    // bytes of a sector as the domain sees it, 512 or 4096; 0: not said
}

// Disk returns this host's copy of a disk.
func (d Domain) Disk(vdev string) (Disk, error) {
	disk, ok := d.Disks[vdev]
	if !ok {
		return disk, fmt.Errorf("the configuration has no [domain.%s.disk.%s]", d.Name, vdev)
	}
	return disk, nil
}

// For returns how the domain called name is protected.
func (c *Config) For(name string) Domain {
	d, ok := c.Domains[name]
	if !ok {
		d = c.Default
	}
	d.Name = name
	if len(d.Backups) == 0 && len(c.Peers) == 1 {
		d.Backups = slices.Collect(maps.Keys(c.Peers))
	}
	return d
}

// Backup is the peer that holds the copy unless another one is chosen; "" if none is
// configured.
func (d Domain) Backup() string {
	if len(d.Backups) == 0 {
		return ""
	}
	return d.Backups[0]
}

// Backup returns the peer that a domain is to have as its backup: the one named
// by override, or else the configuration's.
func (c *Config) Backup(d Domain, override string) (Peer, error) {
	name := d.Backup()
	if override != "" {
		name = override
	}
	if name == "" {
		return Peer{}, fmt.Errorf("%s: no backup is configured: set backup or backups, or give --backup", d.Name)
	}
	p, ok := c.Peers[name]
	if !ok {
		return p, fmt.Errorf("%s: no [peer.%s] in the configuration", d.Name, name)
	}
	return p, nil
}

// Error is what is wrong with a configuration, and where.
type Error struct {
	Path string // of the file
	Line int    // 0 if unknown
	Key  string // dotted; "" if the file can't be read at all
	Err  error
}

func (e *Error) Error() string {
	s := e.Path
	if e.Line > 0 {
		s += fmt.Sprintf(":%d", e.Line)
	}
	if e.Key != "" {
		s += ": " + e.Key
	}
	return s + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// ErrUnknownKey: xlft has no such setting.
var ErrUnknownKey = errors.New("unknown key")

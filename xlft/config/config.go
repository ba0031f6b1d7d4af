// Package config reads xlft's configuration, one TOML file, into validated
// values.
//
// The one rule a caller must know: what Parse returns needs no further check,
// and a key that it doesn't know is an error, never ignored.
package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"xlft/xlft/wire"
)

// DefaultPath is where the configuration is looked for.
const DefaultPath = "/etc/xlft/xlft.toml"

// Config is a validated configuration.
type Config struct {
	Name     string // this host, as its peers call it
	Identity string // directory of host.crt and host.key
	StateDir string // survives a reboot
	RunDir   string // sockets

	Listen           string // host:port
	CheckpointMemory uint64 // bytes of one checkpoint in memory, here and there
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
	Type             string // "none" or "fence"
	AcceptSplitBrain bool
}

// Peer is another host.
type Peer struct {
	Name        string
	Address     string // host:port
	Fingerprint wire.Fingerprint
	Fence       *Fence // nil if it can't be fenced
}

// Fence is how a peer's power is taken: by an agent of ClusterLabs' kind.
type Fence struct {
	Agent   string // path of a program
	Options map[string]string
	Timeout time.Duration
	Delay   time.Duration // before it is done
}

// Domain is how a domain is protected.
type Domain struct {
	Name           string
	Backup         string // a peer's name
	EpochMax       time.Duration
	DirtyMax       uint64 // pages; 0: no limit
	FailureTimeout time.Duration
	AckTimeout     time.Duration
	SuspendTimeout time.Duration
	RetryDelay     time.Duration
	NetBuffer      uint64 // bytes per network device
	Compress       bool
	SyncRate       uint64          // bytes a second that the first copy of a disk compares; 0: no limit
	Disks          map[string]Disk // by virtual device, such as "xvda"
}

// Disk is this host's copy of a domain's disk.
type Disk struct {
	VDev   string
	Path   string // a file, a block device or a logical volume
	Direct bool   // pass the kernel's page cache by
	Shared bool   // the other host sees the same storage
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
	if d.Backup == "" && len(c.Peers) == 1 {
		for peer := range c.Peers {
			d.Backup = peer
		}
	}
	return d
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

// What the file holds: pointers tell "unset" from zero.
type rawConfig struct {
	Host struct {
		Name     *string `toml:"name"`
		Identity *string `toml:"identity"`
		StateDir *string `toml:"state_dir"`
		RunDir   *string `toml:"run_dir"`
	} `toml:"host"`
	Receive struct {
		Listen           *string   `toml:"listen"`
		CheckpointMemory *rawBytes `toml:"checkpoint_memory"`
		DiskJournal      *rawBytes `toml:"disk_journal"`
		DiskJournalFile  *rawBytes `toml:"disk_journal_file"`
		DurableAck       *bool     `toml:"durable_ack"`
	} `toml:"receive"`
	Arbiter struct {
		Type             *string `toml:"type"`
		AcceptSplitBrain *bool   `toml:"accept_split_brain"`
	} `toml:"arbiter"`
	Peer    map[string]rawPeer   `toml:"peer"`
	Default rawDomain            `toml:"default"`
	Domain  map[string]rawDomain `toml:"domain"`
}

type rawPeer struct {
	Address     *string   `toml:"address"`
	Fingerprint *string   `toml:"fingerprint"`
	Fence       *rawFence `toml:"fence"`
}

type rawFence struct {
	Agent   *string        `toml:"agent"`
	Timeout *rawDuration   `toml:"timeout"`
	Delay   *rawDuration   `toml:"delay"`
	Options map[string]any `toml:"options"`
}

type rawDomain struct {
	Backup         *string      `toml:"backup"`
	EpochMax       *rawDuration `toml:"epoch_max"`
	DirtyMax       *uint64      `toml:"dirty_max"`
	FailureTimeout *rawDuration `toml:"failure_timeout"`
	AckTimeout     *rawDuration `toml:"ack_timeout"`
	SuspendTimeout *rawDuration `toml:"suspend_timeout"`
	RetryDelay     *rawDuration `toml:"retry_delay"`
	NetBuffer      *rawBytes    `toml:"net_buffer"`
	Compression    *string      `toml:"compression"`
	SyncRate       *rawBytes    `toml:"sync_rate"`

	Disk map[string]rawDisk `toml:"disk"`
}

type rawDisk struct {
	Path    *string `toml:"path"`
	Cache   *string `toml:"cache"`
	Storage *string `toml:"storage"`
}

// rawDuration is a duration as time.ParseDuration reads it: "200ms", "1s".
type rawDuration time.Duration

func (d *rawDuration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration such as \"200ms\" or \"1s\"", b)
	}
	*d = rawDuration(v)
	return nil
}

// rawBytes is a size: "64MiB", "512KiB", or a plain number of bytes.
type rawBytes uint64

func (n *rawBytes) UnmarshalText(b []byte) error {
	s := string(b)
	mul := uint64(1)
	for _, u := range []struct {
		suffix string
		mul    uint64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}} {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, mul = strings.TrimSpace(rest), u.mul
			break
		}
	}
	var v uint64
	if _, err := fmt.Sscanf(s, "%d", &v); err != nil || fmt.Sprint(v) != s || v > 1<<44/mul {
		return fmt.Errorf("%q is no size such as \"64MiB\"", b)
	}
	*n = rawBytes(v * mul)
	return nil
}

// Load reads the configuration file at path.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{Path: path, Err: errors.Unwrap(err)}
	}
	defer f.Close()
	return Parse(path, f)
}

// Parse reads a configuration; path is for messages.
func Parse(path string, r io.Reader) (*Config, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, &Error{Path: path, Err: err}
	}
	var raw rawConfig
	md, err := toml.Decode(string(text), &raw)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			msg := pe.Message
			if msg == "" {
				msg = strings.TrimPrefix(pe.Error(), "toml: ")
			}
			return nil, &Error{path, pe.Position.Line, pe.LastKey, errors.New(msg)}
		}
		return nil, &Error{Path: path, Err: err}
	}
	if un := md.Undecoded(); len(un) > 0 {
		return nil, &Error{path, lineOf(string(text), un[0]), un[0].String(), ErrUnknownKey}
	}
	c, key, err := raw.validate()
	if err != nil {
		return nil, &Error{path, lineOf(string(text), key), key.String(), err}
	}
	return c, nil
}

// lineOf finds where a key stands: the last line that sets its last part under
// a table header that names the others. The library tells positions of parse
// errors only. It is for a message, so 0, unknown, will do.
func lineOf(text string, key toml.Key) int {
	if len(key) == 0 {
		return 0
	}
	table, last, line := "", "", 0
	for i, l := range strings.Split(text, "\n") {
		l = strings.TrimSpace(l)
		if h, ok := strings.CutPrefix(l, "["); ok {
			table = strings.ReplaceAll(strings.Trim(strings.SplitN(h, "]", 2)[0], "[] "), "\"", "")
			if table == strings.Join(key, ".") {
				line = i + 1
			}
			continue
		}
		name, _, ok := strings.Cut(l, "=")
		if !ok || strings.HasPrefix(l, "#") {
			continue
		}
		last = strings.ReplaceAll(strings.TrimSpace(name), "\"", "")
		full := last
		if table != "" {
			full = table + "." + last
		}
		if full == strings.Join(key, ".") {
			line = i + 1
		}
	}
	return line
}

func (raw *rawConfig) validate() (*Config, toml.Key, error) {
	c := &Config{
		Identity: "/etc/xlft/identity", StateDir: "/var/lib/xlft", RunDir: "/run/xlft",
		Listen: ":7789", CheckpointMemory: 256 << 20, DiskJournal: 256 << 20,
		Peers: map[string]Peer{}, Domains: map[string]Domain{},
	}
	host, err := os.Hostname()
	if err == nil {
		c.Name = host
	}
	set(&c.Name, raw.Host.Name)
	set(&c.Identity, raw.Host.Identity)
	set(&c.StateDir, raw.Host.StateDir)
	set(&c.RunDir, raw.Host.RunDir)
	set(&c.Listen, raw.Receive.Listen)
	if raw.Receive.CheckpointMemory != nil {
		c.CheckpointMemory = uint64(*raw.Receive.CheckpointMemory)
	}
	if c.CheckpointMemory < 16<<20 {
		return nil, toml.Key{"receive", "checkpoint_memory"}, fmt.Errorf("%d bytes is under the 16MiB minimum", c.CheckpointMemory)
	}
	if raw.Receive.DiskJournal != nil {
		c.DiskJournal = uint64(*raw.Receive.DiskJournal)
	}
	if raw.Receive.DiskJournalFile != nil {
		c.DiskJournalFile = uint64(*raw.Receive.DiskJournalFile)
	}
	set(&c.DurableAck, raw.Receive.DurableAck)
	if c.DiskJournal < 64<<20 {
		return nil, toml.Key{"receive", "disk_journal"}, fmt.Errorf("%d bytes is under the 64MiB minimum", c.DiskJournal)
	}
	if err := checkAddress(c.Listen, true); err != nil {
		return nil, toml.Key{"receive", "listen"}, err
	}

	if raw.Arbiter.Type == nil {
		return nil, toml.Key{"arbiter", "type"}, errors.New("must be set: who decides which host runs a domain when they can't talk? \"fence\", or \"none\" with accept_split_brain = true")
	}
	c.Arbiter.Type = *raw.Arbiter.Type
	set(&c.Arbiter.AcceptSplitBrain, raw.Arbiter.AcceptSplitBrain)
	switch {
	case c.Arbiter.Type == "fence":
	case c.Arbiter.Type != "none":
		return nil, toml.Key{"arbiter", "type"}, fmt.Errorf("unknown arbiter %q: \"fence\" and \"none\" are there", c.Arbiter.Type)
	case !c.Arbiter.AcceptSplitBrain:
		return nil, toml.Key{"arbiter", "type"}, errors.New("\"none\" needs accept_split_brain = true: without an arbiter both hosts run the domain when the network between them breaks")
	}

	names := make([]string, 0, len(raw.Peer))
	for n := range raw.Peer {
		names = append(names, n)
	}
	sort.Strings(names)
	seen := map[wire.Fingerprint]string{}
	for _, n := range names {
		p, rp := Peer{Name: n}, raw.Peer[n]
		if rp.Address == nil {
			return nil, toml.Key{"peer", n}, errors.New("address must be set (\"host:port\")")
		}
		if err := checkAddress(*rp.Address, false); err != nil {
			return nil, toml.Key{"peer", n, "address"}, err
		}
		p.Address = *rp.Address
		if rp.Fingerprint == nil {
			return nil, toml.Key{"peer", n}, errors.New("fingerprint must be set: \"xlft keygen\" on that host prints it")
		}
		if p.Fingerprint, err = wire.ParseFingerprint(*rp.Fingerprint); err != nil {
			return nil, toml.Key{"peer", n, "fingerprint"}, err
		}
		if other, ok := seen[p.Fingerprint]; ok {
			return nil, toml.Key{"peer", n, "fingerprint"}, fmt.Errorf("peer %s has the same one", other)
		}
		seen[p.Fingerprint] = n
		if p.Fence, err = rp.Fence.validate(); err != nil {
			return nil, toml.Key{"peer", n, "fence"}, err
		}
		if p.Fence == nil && c.Arbiter.Type == "fence" {
			return nil, toml.Key{"peer", n}, fmt.Errorf("arbiter.type is \"fence\": a table [peer.%s.fence] must say how its power is taken", n)
		}
		c.Peers[n] = p
	}

	builtin := Domain{
		EpochMax: 200 * time.Millisecond, DirtyMax: 16384, FailureTimeout: time.Second,
		AckTimeout: 30 * time.Second, SuspendTimeout: 10 * time.Second, RetryDelay: 5 * time.Second,
		NetBuffer: 0, Compress: true,
	}
	key := toml.Key(nil)
	if c.Default, key, err = raw.Default.apply(builtin, toml.Key{"default"}, c.Peers); err != nil {
		return nil, key, err
	}
	if len(c.Default.Disks) > 0 {
		return nil, toml.Key{"default", "disk"}, errors.New("disks are a domain's own: put them into [domain.NAME.disk.VDEV]")
	}
	paths := map[string]string{}
	for n, rd := range raw.Domain {
		d, key, err := rd.apply(c.Default, toml.Key{"domain", n}, c.Peers)
		if err != nil {
			return nil, key, err
		}
		d.Name = n
		for _, disk := range d.Disks {
			if other, ok := paths[disk.Path]; ok {
				return nil, toml.Key{"domain", n, "disk", disk.VDev, "path"}, fmt.Errorf("%s has the same one", other)
			}
			paths[disk.Path] = n + "/" + disk.VDev
			if disk.Shared && c.Arbiter.Type != "fence" {
				return nil, toml.Key{"domain", n, "disk", disk.VDev, "storage"}, errors.New("shared storage needs arbiter.type = \"fence\": a host that is only slow could still write to it after the other one has taken over")
			}
		}
		c.Domains[n] = d
	}
	return c, nil, nil
}

func (raw *rawFence) validate() (*Fence, error) {
	if raw == nil {
		return nil, nil
	}
	f := &Fence{Timeout: time.Minute, Options: map[string]string{}}
	if raw.Agent == nil || !strings.HasPrefix(*raw.Agent, "/") {
		return nil, errors.New("agent must be set: the absolute path of a fence agent, such as \"/usr/sbin/fence_ipmilan\"")
	}
	f.Agent = *raw.Agent
	for k, v := range raw.Options {
		switch v.(type) {
		case string, int64, float64, bool:
		default:
			return nil, fmt.Errorf("option %s is neither a string nor a number nor true or false", k)
		}
		f.Options[k] = fmt.Sprint(v)
		if strings.ContainsAny(k+f.Options[k], "\n") || strings.Contains(k, "=") || k == "action" {
			return nil, fmt.Errorf("option %q can't be given to an agent", k)
		}
	}
	if raw.Timeout != nil {
		f.Timeout = time.Duration(*raw.Timeout)
	}
	if raw.Delay != nil {
		f.Delay = time.Duration(*raw.Delay)
	}
	if f.Timeout < time.Second || f.Timeout > time.Hour {
		return nil, fmt.Errorf("timeout %v is not between 1s and 1h", f.Timeout)
	}
	if f.Delay < 0 || f.Delay > 5*time.Minute {
		return nil, fmt.Errorf("delay %v is not between 0s and 5m", f.Delay)
	}
	return f, nil
}

func set[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}

func checkAddress(a string, listen bool) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil || port == "" || (host == "" && !listen) {
		return fmt.Errorf("%q is no \"host:port\"", a)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q is no port", port)
	}
	return nil
}

func (raw rawDomain) apply(d Domain, at toml.Key, peers map[string]Peer) (Domain, toml.Key, error) {
	set(&d.Backup, raw.Backup)
	set(&d.DirtyMax, raw.DirtyMax)
	if raw.NetBuffer != nil {
		d.NetBuffer = uint64(*raw.NetBuffer)
	}
	if raw.SyncRate != nil {
		d.SyncRate = uint64(*raw.SyncRate)
	}
	if raw.Compression != nil {
		if *raw.Compression != "s2" && *raw.Compression != "none" {
			return d, append(append(toml.Key{}, at...), "compression"), fmt.Errorf("%q is neither \"s2\" nor \"none\"", *raw.Compression)
		}
		d.Compress = *raw.Compression == "s2"
	}
	if len(raw.Disk) > 0 {
		d.Disks = map[string]Disk{}
	}
	for vdev, rd := range raw.Disk {
		at := append(append(toml.Key{}, at...), "disk", vdev)
		if rd.Path == nil || !strings.HasPrefix(*rd.Path, "/") {
			return d, at, errors.New("path must be set: an absolute path of a file, a block device or a logical volume")
		}
		disk := Disk{VDev: vdev, Path: *rd.Path}
		if rd.Cache != nil {
			if *rd.Cache != "writeback" && *rd.Cache != "none" {
				return d, append(at, "cache"), fmt.Errorf("%q is neither \"writeback\" nor \"none\"", *rd.Cache)
			}
			disk.Direct = *rd.Cache == "none"
		}
		if rd.Storage != nil {
			if *rd.Storage != "mirror" && *rd.Storage != "shared" {
				return d, append(at, "storage"), fmt.Errorf("%q is neither \"mirror\" nor \"shared\"", *rd.Storage)
			}
			if disk.Shared = *rd.Storage == "shared"; disk.Shared && rd.Cache != nil && !disk.Direct {
				return d, append(at, "cache"), errors.New("shared storage is never cached by the kernel: leave cache out, or say \"none\"")
			}
			disk.Direct = disk.Direct || disk.Shared
		}
		d.Disks[vdev] = disk
	}
	sub := func(k string) toml.Key { return append(append(toml.Key{}, at...), k) }
	if d.Backup != "" {
		if _, ok := peers[d.Backup]; !ok {
			return d, sub("backup"), fmt.Errorf("no [peer.%s] is in this file", d.Backup)
		}
	}
	for _, v := range []struct {
		key      string
		dst      *time.Duration
		src      *rawDuration
		min, max time.Duration
	}{
		{"epoch_max", &d.EpochMax, raw.EpochMax, 5 * time.Millisecond, time.Minute},
		{"failure_timeout", &d.FailureTimeout, raw.FailureTimeout, 100 * time.Millisecond, 5 * time.Minute},
		{"ack_timeout", &d.AckTimeout, raw.AckTimeout, time.Second, time.Hour},
		{"suspend_timeout", &d.SuspendTimeout, raw.SuspendTimeout, 100 * time.Millisecond, time.Hour},
		{"retry_delay", &d.RetryDelay, raw.RetryDelay, 100 * time.Millisecond, time.Hour},
	} {
		if v.src != nil {
			*v.dst = time.Duration(*v.src)
		}
		if *v.dst < v.min || *v.dst > v.max {
			return d, sub(v.key), fmt.Errorf("%v is not between %v and %v", *v.dst, v.min, v.max)
		}
	}
	if d.NetBuffer != 0 && d.NetBuffer < 64<<10 {
		return d, sub("net_buffer"), fmt.Errorf("%d bytes is under the 64KiB minimum", d.NetBuffer)
	}
	return d, nil, nil
}

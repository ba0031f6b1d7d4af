package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"xlft/xlft/wire"
)

// validate turns what the file holds into a Config. An error comes with the key
// that it is about.
func (raw *rawConfig) validate() (*Config, toml.Key, error) {
	c := &Config{
		Identity: "/etc/xlft/identity", StateDir: "/var/lib/xlft", RunDir: DefaultRunDir,
		Listen: ":7789", CheckpointMemory: 256 << 20, PageCache: 128 << 20, DiskJournal: 256 << 20,
		HealthInterval: 30 * time.Second,
		Peers:          map[string]Peer{}, Domains: map[string]Domain{},
	}
	for _, table := range []func(*Config) (toml.Key, error){raw.host, raw.receive, raw.arbiter, raw.peers, raw.domains} {
		if key, err := table(c); err != nil {
			return nil, key, err
		}
	}
	return c, nil, nil
}

// host reads [host].
func (raw *rawConfig) host(c *Config) (toml.Key, error) {
	if name, err := os.Hostname(); err == nil {
		c.Name = name
	}
	set(&c.Name, raw.Host.Name)
	set(&c.Identity, raw.Host.Identity)
	set(&c.StateDir, raw.Host.StateDir)
	set(&c.RunDir, raw.Host.RunDir)
	set(&c.HealthCommand, raw.Host.HealthCommand)
	if c.HealthCommand != "" && !strings.HasPrefix(c.HealthCommand, "/") {
		return toml.Key{"host", "health_command"}, fmt.Errorf("%q is no absolute path of a program", c.HealthCommand)
	}
	if raw.Host.HealthInterval != nil {
		c.HealthInterval = time.Duration(*raw.Host.HealthInterval)
	}
	if i := c.HealthInterval; i < time.Second || i > time.Hour {
		return toml.Key{"host", "health_interval"}, fmt.Errorf("%v is not between 1s and 1h", i)
	}
	return nil, nil
}

// maxPageCache keeps the sum of all such numbers far from where it could overflow.
const maxPageCache = 64 << 30

// receive reads [receive].
func (raw *rawConfig) receive(c *Config) (toml.Key, error) {
	set(&c.Listen, raw.Receive.Listen)
	if raw.Receive.CheckpointMemory != nil {
		c.CheckpointMemory = uint64(*raw.Receive.CheckpointMemory)
	}
	if c.CheckpointMemory < 16<<20 {
		return toml.Key{"receive", "checkpoint_memory"}, fmt.Errorf("%d bytes is under the 16MiB minimum", c.CheckpointMemory)
	}
	if raw.Receive.PageCache != nil {
		c.PageCache = uint64(*raw.Receive.PageCache)
	}
	if c.PageCache > maxPageCache {
		return toml.Key{"receive", "page_cache"}, fmt.Errorf("%d bytes is over the 64GiB maximum", c.PageCache)
	}
	if raw.Receive.DiskJournal != nil {
		c.DiskJournal = uint64(*raw.Receive.DiskJournal)
	}
	if raw.Receive.DiskJournalFile != nil {
		c.DiskJournalFile = uint64(*raw.Receive.DiskJournalFile)
	}
	set(&c.DurableAck, raw.Receive.DurableAck)
	if c.DiskJournal < 64<<20 {
		return toml.Key{"receive", "disk_journal"}, fmt.Errorf("%d bytes is under the 64MiB minimum", c.DiskJournal)
	}
	if err := checkAddress(c.Listen, true); err != nil {
		return toml.Key{"receive", "listen"}, err
	}
	return nil, nil
}

// peers reads every [peer.NAME].
func (raw *rawConfig) peers(c *Config) (toml.Key, error) {
	seen := map[wire.Fingerprint]string{}
	for _, n := range slices.Sorted(maps.Keys(raw.Peer)) {
		p, rp := Peer{Name: n}, raw.Peer[n]
		addresses, at, err := rp.addresses()
		if p.Addresses = addresses; err != nil {
			return append(toml.Key{"peer", n}, at...), err
		}
		if rp.Fingerprint == nil {
			return toml.Key{"peer", n}, errors.New("fingerprint must be set: \"xlft keygen\" on that host prints it")
		}
		if p.Fingerprint, err = wire.ParseFingerprint(*rp.Fingerprint); err != nil {
			return toml.Key{"peer", n, "fingerprint"}, err
		}
		if other, ok := seen[p.Fingerprint]; ok {
			return toml.Key{"peer", n, "fingerprint"}, fmt.Errorf("peer %s has the same one", other)
		}
		seen[p.Fingerprint] = n
		fence, at, err := rp.Fence.validate()
		if p.Fence = fence; err != nil {
			return append(toml.Key{"peer", n, "fence"}, at...), err
		}
		if p.Fence == nil && c.Arbiter.Type == "fence" {
			return toml.Key{"peer", n}, fmt.Errorf("arbiter.type is \"fence\": a table [peer.%s.fence] must say how its power is taken", n)
		}
		for _, a := range p.Addresses {
			host, _, _ := net.SplitHostPort(a)
			if ip, err := netip.ParseAddr(host); err == nil && slices.Contains(c.Arbiter.Ping, ip) {
				return toml.Key{"arbiter", "ping"}, fmt.Errorf("%s is peer %s: when it dies it answers nobody, and nobody could take over from it", ip, n)
			}
		}
		c.Peers[n] = p
	}
	return nil, nil
}

// defaultNetBuffer is also what 0 means, which earlier reference configurations
// had.
const defaultNetBuffer = 64 << 20

// domains reads [default] and every [domain.NAME].
func (raw *rawConfig) domains(c *Config) (toml.Key, error) {
	builtin := Domain{
		Pacing: defaultPacing, FailureTimeout: time.Second,
		AckTimeout: 30 * time.Second, SuspendTimeout: 10 * time.Second, RetryDelay: 5 * time.Second, MoveAfter: time.Minute,
		NetBuffer: defaultNetBuffer, Compress: true,
	}
	var key toml.Key
	var err error
	if c.Default, key, err = raw.Default.apply(builtin, toml.Key{"default"}, c.Peers); err != nil {
		return key, err
	}
	if len(c.Default.Disks) > 0 {
		return toml.Key{"default", "disk"}, errors.New("disks are a domain's own: put them into [domain.NAME.disk.VDEV]")
	}
	paths := map[string]string{}
	for n, rd := range raw.Domain {
		d, key, err := rd.apply(c.Default, toml.Key{"domain", n}, c.Peers)
		if err != nil {
			return key, err
		}
		d.Name = n
		for _, disk := range d.Disks {
			if other, ok := paths[disk.Path]; ok {
				return toml.Key{"domain", n, "disk", disk.VDev, "path"}, fmt.Errorf("%s has the same one", other)
			}
			paths[disk.Path] = n + "/" + disk.VDev
			if disk.Shared && c.Arbiter.Type != "fence" {
				return toml.Key{"domain", n, "disk", disk.VDev, "storage"}, errors.New("shared storage needs arbiter.type = \"fence\": a host that is only slow could still write to it after the other one has taken over")
			}
		}
		c.Domains[n] = d
	}
	return nil, nil
}

func set[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}

// addresses returns a peer's addresses, or the key that is wrong.
func (rp rawPeer) addresses() ([]string, toml.Key, error) {
	all, key := rp.Addresses, toml.Key{"addresses"}
	if rp.Address != nil {
		if all != nil {
			return nil, key, errors.New("address is set too: set one of them")
		}
		all, key = []string{*rp.Address}, toml.Key{"address"}
	}
	if len(all) == 0 {
		return nil, nil, errors.New("address must be set (\"host:port\")")
	}
	for i, a := range all {
		if err := checkAddress(a, false); err != nil {
			return nil, key, err
		}
		if slices.Contains(all[:i], a) {
			return nil, key, fmt.Errorf("%s is there twice", a)
		}
	}
	return all, nil, nil
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

// checkBackups returns what is wrong with the backups, and the key.
func (raw rawDomain) checkBackups(peers map[string]Peer) (string, error) {
	if raw.Backup != nil && raw.Backups != nil {
		return "backups", errors.New("backup is set too: set one of them")
	}
	key, names := "backups", raw.Backups
	if raw.Backup != nil {
		key, names = "backup", []string{*raw.Backup}
	}
	for i, n := range names {
		if _, ok := peers[n]; !ok {
			return key, fmt.Errorf("no [peer.%s] is in this file", n)
		}
		if slices.Contains(names[:i], n) {
			return key, fmt.Errorf("%s is there twice", n)
		}
	}
	if raw.Backups != nil && len(raw.Backups) == 0 {
		return key, errors.New("it is empty: leave it out, or name a peer")
	}
	return "", nil
}

func (raw rawDomain) apply(d Domain, at toml.Key, peers map[string]Peer) (Domain, toml.Key, error) {
	if raw.Backup != nil {
		d.Backups = []string{*raw.Backup}
	}
	if raw.Backups != nil {
		d.Backups = raw.Backups
	}
	set(&d.Protect, raw.Protect)
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
		if rd.Sector != nil {
			if disk.Sector = *rd.Sector; disk.Sector != 512 && disk.Sector != 4096 {
				return d, append(at, "sector_size"), fmt.Errorf("%d is neither 512 nor 4096", disk.Sector)
			}
		}
		d.Disks[vdev] = disk
	}
	sub := func(k string) toml.Key { return append(append(toml.Key{}, at...), k) }
	if key, err := raw.checkBackups(peers); err != nil {
		return d, sub(key), err
	}
	var key string
	var err error
	if d.Pacing, key, err = raw.rawPacing.apply(d.Pacing); err != nil {
		return d, sub(key), err
	}
	for _, v := range []limits{
		{"failure_timeout", &d.FailureTimeout, raw.FailureTimeout, 100 * time.Millisecond, 5 * time.Minute},
		{"ack_timeout", &d.AckTimeout, raw.AckTimeout, time.Second, time.Hour},
		{"suspend_timeout", &d.SuspendTimeout, raw.SuspendTimeout, 100 * time.Millisecond, time.Hour},
		{"retry_delay", &d.RetryDelay, raw.RetryDelay, 100 * time.Millisecond, time.Hour},
		{"move_after", &d.MoveAfter, raw.MoveAfter, time.Second, 24 * time.Hour},
	} {
		if err := v.apply(); err != nil {
			return d, sub(v.key), err
		}
	}
	if d.NetBuffer == 0 {
		d.NetBuffer = defaultNetBuffer
	}
	if d.NetBuffer < 1<<20 {
		return d, sub("net_buffer"), fmt.Errorf("%d bytes is under the 1MiB minimum", d.NetBuffer)
	}
	return d, nil, nil
}

package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// What the file holds: pointers tell "unset" from zero.
type rawConfig struct {
	Host struct {
		Name     *string `toml:"name"`
		Identity *string `toml:"identity"`
		StateDir *string `toml:"state_dir"`
		RunDir   *string `toml:"run_dir"`

		HealthCommand  *string      `toml:"health_command"`
		HealthInterval *rawDuration `toml:"health_interval"`
	} `toml:"host"`
	Receive struct {
		Listen           *string   `toml:"listen"`
		CheckpointMemory *rawBytes `toml:"checkpoint_memory"`
		PageCache        *rawBytes `toml:"page_cache"`
		DiskJournal      *rawBytes `toml:"disk_journal"`
		DiskJournalFile  *rawBytes `toml:"disk_journal_file"`
		DurableAck       *bool     `toml:"durable_ack"`
	} `toml:"receive"`
	Arbiter struct {
		Type             *string      `toml:"type"`
		AcceptSplitBrain *bool        `toml:"accept_split_brain"`
		FenceAfter       *rawDuration `toml:"fence_after"`
		Ping             []string     `toml:"ping"`
		CheckInterval    *rawDuration `toml:"check_interval"`
		Etcd             *rawEtcd     `toml:"etcd"`
		File             *rawFile     `toml:"file"`
	} `toml:"arbiter"`
	Peer    map[string]rawPeer   `toml:"peer"`
	Default rawDomain            `toml:"default"`
	Domain  map[string]rawDomain `toml:"domain"`
}

type rawEtcd struct {
	Endpoints []string     `toml:"endpoints"`
	Prefix    *string      `toml:"prefix"`
	CA        *string      `toml:"ca"`
	Cert      *string      `toml:"cert"`
	Key       *string      `toml:"key"`
	Timeout   *rawDuration `toml:"timeout"`
}

type rawFile struct {
	Directory *string      `toml:"directory"`
	Timeout   *rawDuration `toml:"timeout"`
}

type rawPeer struct {
	Address     *string   `toml:"address"`
	Addresses   []string  `toml:"addresses"`
	Fingerprint *string   `toml:"fingerprint"`
	Fence       *rawFence `toml:"fence"`
}

type rawFence struct {
	rawAgent
	Delay  *rawDuration `toml:"delay"`
	Levels [][]rawAgent `toml:"levels"`
}

type rawAgent struct {
	Agent   *string        `toml:"agent"`
	Timeout *rawDuration   `toml:"timeout"`
	Options map[string]any `toml:"options"`
}

type rawDomain struct {
	Backup *string `toml:"backup"`
	rawPacing
	FailureTimeout *rawDuration `toml:"failure_timeout"`
	AckTimeout     *rawDuration `toml:"ack_timeout"`
	SuspendTimeout *rawDuration `toml:"suspend_timeout"`
	RetryDelay     *rawDuration `toml:"retry_delay"`
	Protect        *bool        `toml:"protect"`
	Backups        []string     `toml:"backups"`
	MoveAfter      *rawDuration `toml:"move_after"`
	NetBuffer      *rawBytes    `toml:"net_buffer"`
	Compression    *string      `toml:"compression"`
	SyncRate       *rawBytes    `toml:"sync_rate"`

	Disk map[string]rawDisk `toml:"disk"`
}

type rawDisk struct {
	Path    *string `toml:"path"`
	Cache   *string `toml:"cache"`
	Storage *string `toml:"storage"`
	Sector  *int    `toml:"sector_size"`
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

// ParseBytes reads a size as the configuration has it: "64MiB", "512KiB", or a plain
// number of bytes.
func ParseBytes(s string) (uint64, error) {
	var n rawBytes
	err := n.UnmarshalText([]byte(s))
	return uint64(n), err
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

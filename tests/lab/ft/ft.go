//go:build linux

// Package ft installs xlft on the lab's hosts and drives it as an operator does, through xl and systemd.
//
// The one rule a caller must know: the package keeps no state. It asks the host each time.
package ft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"xlft/tests/lab"

	"xlft/xlft/backup"
	"xlft/xlft/primary"
)

// Settings of the lab's configuration that scenarios vary.
type Settings struct {
	Mode           string // what starts a checkpoint; "": the default
	EpochMax       time.Duration
	FailureTimeout time.Duration
	AckTimeout     time.Duration
	NetBuffer      string
	Fence          bool      // the hosts fence each other, and no split brain is accepted
	Etcd           *lab.Etcd // the arbiter; nil: another one
	Protect        bool      // domains are protected whenever they run
	Paths          bool      // the hosts have two paths to each other, of which the LAN is preferred
	Ping           string    // the address that a host has to reach before it claims; "": none
	Host           string    // more lines of [host]
	More           string    // more tables for the configuration of both hosts
}

// Usual is what scenarios use unless they say otherwise. The failure timeout is longer than a user's: emulated hosts
// share two processors.
var Usual = Settings{EpochMax: 400 * time.Millisecond, FailureTimeout: 6 * time.Second, AckTimeout: 60 * time.Second, NetBuffer: "64MiB"}

// Tree is the top of the source tree that this program was started in.
func Tree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "scripts", "xl")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("ft: not inside the source tree")
}

// Install puts xlft on both hosts as "make install" does, gives each an identity and a configuration that names the
// other, and starts the receivers.
func Install(ctx context.Context, l *lab.Lab, s Settings) error {
	tar, err := pack(ctx)
	if err != nil {
		return err
	}
	prints := map[*lab.Host]string{}
	for _, h := range l.Hosts() {
		if err := unpack(ctx, h, tar); err != nil {
			return err
		}
		if s.Fence {
			if err := h.WriteFile(ctx, FenceAgent, []byte(lab.FenceAgent), 0o755); err != nil {
				return err
			}
		}
		if s.Etcd != nil {
			if err := h.WriteFile(ctx, etcdCA, s.Etcd.CA(), 0o644); err != nil {
				return err
			}
		}
		out, err := h.Run(ctx, "/usr/local/sbin/xlft", "keygen", "--dir", "/etc/xlft/identity")
		if err != nil {
			return err
		}
		prints[h] = strings.TrimSpace(out)
	}
	for _, h := range l.Hosts() {
		peers := map[*lab.Host]string{}
		for p, print := range prints {
			if p != h {
				peers[p] = print
			}
		}
		if err := h.WriteFile(ctx, ConfigPath, []byte(Config(h, peers, s)), 0o644); err != nil {
			return err
		}
		if err := start(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// Save returns what is particular to a host's installation: its configuration and its identity.
func Save(ctx context.Context, h *lab.Host) ([]byte, error) {
	out, err := h.Run(ctx, "tar", "-C", "/etc", "-cf", "-", "xlft")
	return []byte(out), err
}

// Reinstall puts xlft on a host that has forgotten everything, with what Save returned before.
func Reinstall(ctx context.Context, h *lab.Host, saved []byte) error {
	tar, err := pack(ctx)
	if err != nil {
		return err
	}
	if err := unpack(ctx, h, tar); err != nil {
		return err
	}
	if _, err := h.RunInput(ctx, saved, "tar", "-C", "/etc", "-xf", "-"); err != nil {
		return err
	}
	return start(ctx, h)
}

// packed is the installation, made once a process.
var packed struct {
	sync.Mutex
	tar []byte
}

// pack returns what "make install" installs, as a tar file.
func pack(ctx context.Context) ([]byte, error) {
	packed.Lock()
	defer packed.Unlock()
	if packed.tar != nil {
		return packed.tar, nil
	}
	tree, err := Tree()
	if err != nil {
		return nil, err
	}
	stage, err := os.MkdirTemp("", "xlft-install-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(stage)
	if err := os.Chmod(stage, 0o755); err != nil { // the host's / gets this directory's mode
		return nil, err
	}
	mk := exec.CommandContext(ctx, "make", "-s", "install", "DESTDIR="+stage)
	mk.Dir = tree
	if out, err := mk.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make install: %w\n%s", err, out)
	}
	tar, err := exec.CommandContext(ctx, "tar", "-C", stage, "-cf", "-", ".").Output()
	if err != nil {
		return nil, fmt.Errorf("pack the installation: %w", err)
	}
	packed.tar = tar
	return tar, nil
}

func unpack(ctx context.Context, h *lab.Host, tar []byte) error {
	_, err := h.RunInput(ctx, tar, "tar", "-C", "/", "--no-same-owner", "-xf", "-")
	return err
}

func start(ctx context.Context, h *lab.Host) error {
	const script = `set -e
systemd-tmpfiles --create /etc/tmpfiles.d/xlft.conf
systemctl daemon-reload
systemctl restart systemd-modules-load.service
systemctl start xlft-receiver.socket xlft-receiver.service`
	_, err := h.Run(ctx, "sh", "-c", script)
	return err
}

// FenceAgent is the lab's fence agent on a host; it is kept with the configuration.
const FenceAgent = "/etc/xlft/fence_lab"

// arbiter returns the configuration's tables for the arbiter.
func (s Settings) arbiter() string {
	var text string
	switch {
	case s.Etcd != nil:
		text = "[arbiter]\ntype = \"etcd\"\n"
	case s.Fence:
		text = fmt.Sprintf("[arbiter]\ntype = \"fence\"\nfence_after = %q\n", s.FailureTimeout)
	default:
		text = "[arbiter]\ntype = \"none\"\naccept_split_brain = true\n"
	}
	if s.Ping != "" {
		text += fmt.Sprintf("ping = [%q]\n", s.Ping)
	}
	if s.Etcd != nil {
		text += fmt.Sprintf("[arbiter.etcd]\nendpoints = [%q]\nca = %q\n", lab.EtcdEndpoint, etcdCA)
	}
	return text
}

// etcdCA is what the hosts check etcd's certificate against.
const etcdCA = "/etc/xlft/etcd-ca.crt"

// addresses returns a host's addresses, as its peer's configuration has them.
func (s Settings) addresses(p *lab.Host) string {
	text := fmt.Sprintf("\"%v:7789\"", p.IPv4())
	if s.Paths {
		text += fmt.Sprintf(", \"%v:7789\"", p.Second())
	}
	return text
}

// ConfigPath is xlft's configuration on a host.
const ConfigPath = "/etc/xlft/xlft.toml"

// Config is host h's configuration; peers are the other hosts' fingerprints. A domain's backup is the next host in the
// alphabet, and then the one after that.
func Config(h *lab.Host, peers map[*lab.Host]string, s Settings) string {
	order := slices.SortedFunc(maps.Keys(peers), func(a, b *lab.Host) int {
		after := func(p *lab.Host) bool { return p.Name() > h.Name() }
		if after(a) != after(b) {
			return map[bool]int{true: -1, false: 1}[after(a)]
		}
		return strings.Compare(a.Name(), b.Name())
	})
	text := fmt.Sprintf("[host]\nname = %q\n%s\n%s", h.Name(), s.Host, s.arbiter())
	var names []string
	for _, p := range order {
		names = append(names, fmt.Sprintf("%q", p.Name()))
		text += fmt.Sprintf("\n[peer.%s]\naddresses = [%s]\nfingerprint = %q\n", p.Name(), s.addresses(p), peers[p])
		if s.Fence {
			text += fmt.Sprintf("[peer.%s.fence]\nagent = %q\noptions = { plug = %q }\n", p.Name(), FenceAgent, p.Name())
		}
	}
	return text + fmt.Sprintf(`
[default]
backups = [%s]
%sepoch_max = %q
failure_timeout = %q
ack_timeout = %q
suspend_timeout = "20s"
retry_delay = "1s"
move_after = "10s"
net_buffer = %q
protect = %v
%s`, strings.Join(names, ", "), s.mode(), s.EpochMax, s.FailureTimeout, s.AckTimeout, s.NetBuffer, s.Protect, s.More)
}

func (s Settings) mode() string {
	if s.Mode == "" {
		return ""
	}
	return fmt.Sprintf("mode = %q\n", s.Mode)
}

// Row is what "xl ft-status --json" prints.
type Row struct {
	Domain    string          `json:"domain"`
	Role      string          `json:"role"`
	Peer      string          `json:"peer"`
	State     string          `json:"state"`
	Protected bool            `json:"protected"`
	Epoch     uint64          `json:"epoch"`
	Primary   *primary.Status `json:"primary"`
	// Unprotected says why a domain that is to be protected is not.
	Unprotected *steward       `json:"unprotected"`
	Backup      *backup.Status `json:"backup"`
	Paths       []way          `json:"paths"`
}

// A way is one of a peer's addresses.
type way struct {
	Peer    string `json:"peer"`
	Address string `json:"address"`
	Up      bool   `json:"up"`
}

type steward struct {
	Stopped bool   `json:"stopped"`
	Why     string `json:"why"`
}

// Status asks a host about a domain. An unprotected domain is no error.
func Status(ctx context.Context, h *lab.Host, domain string) (Row, error) {
	var r Row
	out, err := h.Run(ctx, "xl", "ft-status", "--json", domain)
	var ce *lab.CommandError
	if err != nil && !(errors.As(err, &ce) && (ce.Status.Code == 1 || ce.Status.Code == 2) && out != "") {
		return r, err
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return r, fmt.Errorf("read ft-status of %s: %w", domain, err)
	}
	return r, nil
}

// Await waits until ok accepts the status of a domain on a host. It asks less and less often: a command takes an
// emulated host a large part of a second.
func Await(ctx context.Context, h *lab.Host, domain string, what string, ok func(Row) bool) (Row, error) {
	const shortest, longest = 300 * time.Millisecond, 4 * time.Second
	for pause := shortest; ; pause = min(pause*3/2, longest) {
		r, err := Status(ctx, h, domain)
		if err == nil && ok(r) {
			return r, nil
		}
		if err == nil {
			err = fmt.Errorf("%s on %s is %s (role %s, protected %v)", domain, h.Name(), r.State, r.Role, r.Protected)
		}
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("waiting for: %s: %w; last: %w", what, context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

// Journal returns what xlft's units logged on a host.
func Journal(ctx context.Context, h *lab.Host) string {
	out, err := h.Run(ctx, "journalctl", "--no-pager", "-o", "short-monotonic", "-u", "xlft*")
	if err != nil {
		return err.Error()
	}
	return out
}

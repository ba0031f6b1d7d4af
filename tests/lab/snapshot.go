//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	bootDeadline = 10 * time.Minute // a boot takes half a minute on an idle machine
	probeTimeout = time.Second      // for one attempt to connect to something that is coming up
)

// A snapshot of a booted host is three files that nobody writes to any more: the memory, the state of the devices, and
// the disk. A restored host maps the memory privately and puts an overlay on the disk, so any number of processes
// restore from one snapshot at once.
type snapshot struct{ *entry }

func (s snapshot) memory() string { return filepath.Join(s.dir, "memory") }
func (s snapshot) state() string  { return filepath.Join(s.dir, "state") }
func (s snapshot) disk() string   { return filepath.Join(s.dir, "disk.qcow2") }

// prepareSnapshot returns the snapshot of one host, booting it in the lab's network if it is not in the cache.
func prepareSnapshot(ctx context.Context, c cache, n *network, img image, spec hostSpec, logf func(string, ...any)) (snapshot, error) {
	version, err := qemuVersion(ctx)
	if err != nil {
		return snapshot{}, err
	}
	key, err := snapshotKey(version, img, spec)
	if err != nil {
		return snapshot{}, err
	}
	e, err := c.get(ctx, "host"+spec.name, key, func(dir string) error {
		logf("lab: booting host %s for its snapshot", spec.name)
		ctx, cancel := context.WithTimeout(ctx, bootDeadline)
		defer cancel()
		if err := takeSnapshot(ctx, n, img, spec, snapshot{&entry{dir: dir}}); err != nil {
			console, _ := os.ReadFile(filepath.Join(dir, "console.log"))
			return fmt.Errorf("%w; console of host %s:\n%s", err, spec.name, tail(string(console), 20))
		}
		return nil
	})
	return snapshot{e}, err
}

// snapshotKey covers QEMU's arguments and what QEMU boots, without paths.
func snapshotKey(version string, img image, spec hostSpec) (string, error) {
	neutral := machine{
		hostSpec: spec, image: image{xen: "xen", kernel: "kernel", initramfs: "initramfs"},
		disk: "disk", san: "san", memory: "memory", shared: true, dir: "dir",
	}
	cpu, err := cpuModel()
	if err != nil {
		return "", err
	}
	k := newKey().text("qemu", version).text("cpu", cpu).text("image", img.key).text("warmup", warmUp)
	for _, arg := range neutral.args() {
		k.text("arg", arg)
	}
	return k.sum()
}

// cpuModel is part of a snapshot: the emulated time stamp counter runs as fast as this machine's.
func cpuModel() (string, error) {
	body, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(string(body), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value), nil
		}
	}
	return "", nil
}

// warmUp puts into the snapshot what the first test would otherwise wait for.
const warmUp = `set -e
state=$(systemctl is-system-running --wait) || { echo "systemd: $state"; systemctl --failed --no-legend; exit 1; } >&2
xl create -q -p /var/lib/xlft-lab/linux.cfg
xl destroy linux
rm -f /var/log/xen/*.log* /var/log/xen/console/*
sync`

func takeSnapshot(ctx context.Context, n *network, img image, spec hostSpec, s snapshot) (err error) {
	if err := run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", img.disk, s.disk()); err != nil {
		return err
	}
	san := filepath.Join(s.dir, "san")
	if err := emptySAN(san); err != nil {
		return err
	}
	q, err := startQEMU(n.ns, machine{hostSpec: spec, image: img, disk: s.disk(), san: san, memory: s.memory(), shared: true, dir: s.dir})
	if err != nil {
		return err
	}
	defer q.kill()
	m, err := dialMonitor(ctx, filepath.Join(s.dir, "monitor"), q.gone)
	if err != nil {
		return err
	}
	defer m.close()
	h := &Host{hostSpec: spec, net: n, qemu: q}
	if err := h.awaitAgent(ctx); err != nil {
		return err
	}
	if _, err := h.Run(ctx, "sh", "-c", warmUp); err != nil {
		return err
	}
	if _, err := m.do("stop", nil); err != nil {
		return err
	}
	if err := m.ignoreShared(); err != nil {
		return err
	}
	if _, err := m.do("migrate", map[string]any{"uri": "exec:cat > state"}); err != nil {
		return err
	}
	if err := m.migrated(ctx); err != nil {
		return err
	}
	if _, err := m.do("quit", nil); err != nil {
		return err
	}
	select {
	case <-q.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("QEMU does not quit: %w", ctx.Err())
	}
}

// restore starts a host from its snapshot in dir, with a new overlay as its disk.
func (s snapshot) restore(ctx context.Context, n *network, img image, spec hostSpec, dir string) (*qemu, error) {
	m := machine{hostSpec: spec, image: img, disk: filepath.Join(dir, "disk.qcow2"), san: sanOf(dir), memory: s.memory(), frozen: true,
		dir: dir}
	if err := run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", s.disk(), m.disk); err != nil {
		return nil, err
	}
	q, err := startQEMU(n.ns, m)
	if err != nil {
		return nil, err
	}
	if err := s.load(ctx, q, m); err != nil {
		q.kill()
		log, _ := os.ReadFile(filepath.Join(dir, "qemu.log"))
		return nil, fmt.Errorf("restore host %s: %w\n%s", spec.name, err, tail(string(log), 10))
	}
	return q, nil
}

func (s snapshot) load(ctx context.Context, q *qemu, m machine) error {
	mon, err := dialMonitor(ctx, m.monitor(), q.gone)
	if err != nil {
		return err
	}
	defer mon.close()
	if err := mon.ignoreShared(); err != nil {
		return err
	}
	// QEMU itself announces nothing: the LAN carries only the frames of hosts and guests.
	if _, err := mon.do("migrate-set-parameters", map[string]any{"announce-rounds": 0}); err != nil {
		return err
	}
	if _, err := mon.do("migrate-incoming", map[string]any{"uri": "exec:cat " + s.state()}); err != nil {
		return err
	}
	if err := mon.migrated(ctx); err != nil {
		return err
	}
	_, err = mon.do("cont", nil)
	return err
}

//go:build linux

package lab

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

//go:embed recipe
var recipes embed.FS

// hostPackages are what a lab host has beyond Debian's minimum. The libraries that a program built against libxl
// needs come with xen-utils.
var hostPackages = []string{
	"systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "psmisc",
	"xen-utils-4.17", "xen-utils-common", "xenstore-utils", "libxenmisc4.17",
	"iproute2", "bridge-utils", "iputils-ping", "iputils-arping", "tcpdump", "ethtool", "socat", "netcat-openbsd",
	"nbd-client", "lvm2", "lsof", "strace",
}

const (
	xenPackage = "xen-hypervisor-4.17-amd64"
	diskSize   = "8G" // sparse
)

// keyPackages are those whose new version makes a new base.
var keyPackages = []string{xenPackage, "xen-utils-4.17", "linux-image-amd64", "systemd"}

// toolPackages are those whose new version makes a new tools disk.
var toolPackages = []string{"e2fsprogs", "fio", "sqlite3"}

// An image is what a host boots from.
type image struct {
	xen, kernel, initramfs string
	disk                   string // raw; hosts write to overlays
	key                    string
	stock                  string // of OpenBench: where the stock guest was made
	held                   []*entry
}

func (i image) release() {
	for _, e := range i.held {
		e.release()
	}
}

// prepareImage returns the hosts' image, building what is not in the cache. With more, the hosts have what [OpenBench] says.
func prepareImage(ctx context.Context, c cache, more bool, logf func(string, ...any)) (image, error) {
	base, err := prepareBase(ctx, c, logf)
	if err != nil {
		return image{}, err
	}
	tools, err := prepareTools(ctx, c, base, logf)
	if err != nil {
		base.release()
		return image{}, err
	}
	defer tools.release() // the hosts' disk has a copy
	held := []*entry{base}
	var x *extras
	if more {
		x, err = prepareExtras(ctx, c, base, logf)
		if err != nil {
			base.release()
			return image{}, err
		}
		defer x.remus.release()
		held = append(held, x.stock)
	}
	dom0, key, err := prepareDom0(ctx, c, base, tools, x, logf)
	if err != nil {
		image{held: held}.release()
		return image{}, err
	}
	i := image{
		xen:       filepath.Join(base.dir, "xen"),
		kernel:    filepath.Join(base.dir, "vmlinux"),
		initramfs: filepath.Join(dom0.dir, "initramfs"),
		disk:      filepath.Join(dom0.dir, "dom0.img"),
		key:       key,
		held:      append(held, dom0),
	}
	if x != nil {
		i.stock = x.stock.dir
	}
	return i, nil
}

// prepareBase returns the Debian root, hypervisor and kernel: a minute or two when new.
func prepareBase(ctx context.Context, c cache, logf func(string, ...any)) (*entry, error) {
	script, err := recipes.ReadFile("recipe/base.sh")
	if err != nil {
		return nil, err
	}
	versions, err := candidates(ctx, keyPackages)
	if err != nil {
		return nil, err
	}
	key, err := newKey().
		text("recipe", string(script)).
		text("packages", strings.Join(hostPackages, " ")).
		text("versions", versions).
		sum()
	if err != nil {
		return nil, err
	}
	return c.get(ctx, "base", key, func(dir string) error {
		logf("lab: building Debian root with Xen")
		err := runIn(ctx, func(cmd *exec.Cmd) {
			cmd.Stdin = strings.NewReader(string(script))
			cmd.Env = append(cmd.Env,
				"OUT="+dir,
				"SUITE="+suite,
				"MIRROR="+debianSources("/etc/apt")[0].uri,
				"SOURCES="+sourcesList(),
				"PACKAGES="+strings.Join(hostPackages, " "),
				"XEN_PACKAGE="+xenPackage)
			confine(cmd)
		}, "bash")
		if err != nil {
			return err
		}
		return unpackKernel(filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "vmlinux"))
	})
}

// sourcesList is the sources.list of a root that is built.
func sourcesList() string {
	var lines []string
	for _, s := range debianSources("/etc/apt") {
		lines = append(lines, s.String())
	}
	return strings.Join(lines, "\n")
}

// prepareTools returns the disk with the programs of the Linux guest: a minute when new.
func prepareTools(ctx context.Context, c cache, base *entry, logf func(string, ...any)) (*entry, error) {
	script, err := recipes.ReadFile("recipe/tools.sh")
	if err != nil {
		return nil, err
	}
	versions, err := candidates(ctx, toolPackages)
	if err != nil {
		return nil, err
	}
	key, err := newKey().
		text("base", filepath.Base(base.dir)).
		text("recipe", string(script)).
		text("versions", versions).
		sum()
	if err != nil {
		return nil, err
	}
	return c.get(ctx, "tools", key, func(dir string) error {
		logf("lab: building fio and the guest's tools disk")
		return runIn(ctx, func(cmd *exec.Cmd) {
			cmd.Stdin = strings.NewReader(string(script))
			cmd.Env = append(cmd.Env, "OUT="+dir, "BASE="+base.dir, "SOURCES="+sourcesList())
			confine(cmd)
		}, "bash")
	})
}

// confine gives a script its own mount and pid namespaces: its mounts and its processes end with it.
func confine(cmd *exec.Cmd) {
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
}

// candidates returns the versions that apt would install here. A machine that knows none of them, such as one that
// runs another release, gets what the archive has on the day of the build.
func candidates(ctx context.Context, packages []string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", append([]string{"policy"}, packages...)...).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache policy: %w", err)
	}
	var versions []string
	for _, line := range strings.Split(string(out), "\n") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok {
			versions = append(versions, v)
		}
	}
	return strings.Join(versions, " "), nil
}

// prepareDom0 returns the disk made from a base: a few seconds when new.
func prepareDom0(ctx context.Context, c cache, base, tools *entry, x *extras, logf func(string, ...any)) (*entry, string, error) {
	tmp, err := os.MkdirTemp("", "xlft-lab-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(tmp)
	agent, workload := filepath.Join(tmp, "labagent"), filepath.Join(tmp, "workload")
	if err := buildStatic(ctx, agent, "xlft/tests/lab/cmd/labagent"); err != nil {
		return nil, "", err
	}
	if err := buildStatic(ctx, workload, "xlft/tests/lab/workload"); err != nil {
		return nil, "", err
	}
	key, err := newKey().
		text("base", filepath.Base(base.dir)).
		text("extras", x.key()).
		file("packages", filepath.Join(base.dir, "packages.txt")).
		file("tools", filepath.Join(tools.dir, "tools.img")).
		tree(recipes, "recipe").
		file("agent", agent).
		file("workload", workload).
		file("busybox", "/bin/busybox").
		text("size", diskSize).
		sum()
	if err != nil {
		return nil, "", err
	}
	dom0, err := c.get(ctx, "dom0", key, func(dir string) error {
		logf("lab: building disk of the hosts")
		recipe := filepath.Join(tmp, "recipe")
		if err := copyTree(recipe, recipes, "recipe"); err != nil {
			return err
		}
		return runIn(ctx, func(cmd *exec.Cmd) {
			cmd.Env = append(cmd.Env,
				"OUT="+dir,
				"BASE="+base.dir,
				"FILES="+filepath.Join(recipe, "files"),
				"VMLINUX="+filepath.Join(base.dir, "vmlinux"),
				"AGENT="+agent,
				"WORKLOAD="+workload,
				"TOOLS="+filepath.Join(tools.dir, "tools.img"),
				"SIZE="+diskSize)
			cmd.Env = append(cmd.Env, x.env()...)
			confine(cmd)
		}, "bash", filepath.Join(recipe, "dom0.sh"))
	})
	return dom0, key, err
}

// buildStatic builds one of our programs. The same source gives the same bytes.
func buildStatic(ctx context.Context, out, pkg string) error {
	return runIn(ctx, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	}, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg)
}

func copyTree(dst string, fsys fs.FS, root string) error {
	sub, err := fs.Sub(fsys, root)
	if err != nil {
		return err
	}
	return os.CopyFS(dst, sub)
}

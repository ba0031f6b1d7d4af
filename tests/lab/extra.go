//go:build linux

package lab

import (
	"context"
	"embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What the benchmark alone needs.
//
//go:embed extra
var extraRecipes embed.FS

// stockPackages are what the stock guest has beyond Debian's minimum.
var stockPackages = []string{
	"systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "procps", "redis-server", "postgresql", "tcc", "libc6-dev",
}

const stockSize = "1500M" // of the root disk

// OpenBench is Open, and the hosts have two things more. They are built the first time, in some minutes each.
//
// One is a second build of xl, under /opt/remus: made from Debian's source of Xen with libnl, without which Debian's own
// build can't hold what a domain sends. [RemusXL] runs it.
//
// The other is the root disk of a stock Debian guest, [StockDisk]: systemd, Redis, PostgreSQL with the tables of pgbench in
// the database bench, and a C compiler. [NewStockGuest] boots from it.
func OpenBench(ctx context.Context, logf func(format string, args ...any)) (*Lab, error) {
	return open(ctx, true, logf)
}

// RemusXL is the command that runs the hosts' second build of xl.
var RemusXL = []string{"env", "LD_LIBRARY_PATH=/opt/remus/lib", "/opt/remus/sbin/xl"}

// StockDisk is the path of the stock guest's root disk on a host.
const StockDisk = GuestDir + "/stock.img"

// StockRoot is the stock guest's tree on this machine: its programs serve as clients.
func (l *Lab) StockRoot() string { return filepath.Join(l.img.stock, "root") }

// NewStockGuest returns a stock Debian guest whose IPv4 address ends in n, with its root disk as xl.cfg has it.
func NewStockGuest(name string, n int, disk string) Guest {
	g := NewGuest(name, n)
	g.Memory, g.Ramdisk, g.Disks = 256, GuestDir+"/stock-initramfs", []string{disk}
	return g
}

// extras are what OpenBench adds to a host; nil adds nothing.
type extras struct{ remus, stock *entry }

func (x *extras) key() string {
	if x == nil {
		return ""
	}
	return filepath.Base(x.remus.dir) + " " + filepath.Base(x.stock.dir)
}

func (x *extras) env() []string {
	if x == nil {
		return nil
	}
	return []string{"STOCK=" + x.stock.dir, "REMUS=" + filepath.Join(x.remus.dir, "remus.tar")}
}

func prepareExtras(ctx context.Context, c cache, base *entry, logf func(string, ...any)) (*extras, error) {
	files, err := os.MkdirTemp("", "xlft-lab-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(files)
	if err := copyTree(files, extraRecipes, "extra/stock"); err != nil {
		return nil, err
	}
	x := new(extras)
	if x.remus, err = extra(ctx, c, base, "remus", []string{"xen-utils-4.17"}, nil, logf); err != nil {
		return nil, err
	}
	x.stock, err = extra(ctx, c, base, "stock", []string{"systemd", "redis-server", "postgresql-15"}, []string{
		"FILES=" + files, "PACKAGES=" + strings.Join(stockPackages, " "), "SIZE=" + stockSize,
	}, logf)
	if err != nil {
		x.remus.release()
		return nil, err
	}
	return x, nil
}

// extra returns what a recipe makes of the hosts' base.
func extra(ctx context.Context, c cache, base *entry, kind string, packages, env []string, logf func(string, ...any)) (*entry, error) {
	script, err := extraRecipes.ReadFile("extra/" + kind + ".sh")
	if err != nil {
		return nil, err
	}
	versions, err := candidates(ctx, packages)
	if err != nil {
		return nil, err
	}
	k := newKey().
		text("base", filepath.Base(base.dir)).
		text("recipe", string(script)).
		text("versions", versions)
	if kind == "stock" {
		k.text("packages", strings.Join(stockPackages, " ")).text("size", stockSize).tree(extraRecipes, "extra/stock")
	}
	key, err := k.sum()
	if err != nil {
		return nil, err
	}
	e, err := c.get(ctx, kind, key, func(dir string) error {
		logf("lab: building %s (some minutes)", kind)
		return runIn(ctx, func(cmd *exec.Cmd) {
			cmd.Stdin = strings.NewReader(string(script))
			cmd.Env = append(cmd.Env, "OUT="+dir, "BASE="+base.dir, "SUITE="+suite, "MIRROR="+debianSources("/etc/apt")[0].uri,
				"SOURCES="+sourcesList())
			cmd.Env = append(cmd.Env, env...)
			confine(cmd)
		}, "bash")
	})
	if err != nil {
		return nil, err
	}
	return e, c.prune(kind, 1)
}

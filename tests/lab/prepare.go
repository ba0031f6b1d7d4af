//go:build linux

package lab

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// ErrUnable means that this machine can't run the lab. Its message has the reason.
var ErrUnable = errors.New("this machine can't run the lab")

// A need is a file that the lab needs on this machine, and the package that has it.
type need struct {
	pkg     string
	present func() bool
}

func program(name string) func() bool {
	return func() bool { _, err := exec.LookPath(name); return err == nil }
}

func file(name string) func() bool {
	return func() bool { _, err := os.Stat(name); return err == nil }
}

var needs = []need{
	{"qemu-system-x86", program(qemuProgram)},
	{"qemu-utils", program("qemu-img")},
	{"debootstrap", program("debootstrap")},
	{"debian-archive-keyring", file("/usr/share/keyrings/debian-archive-keyring.gpg")},
	{"ca-certificates", file("/etc/ssl/certs/ca-certificates.crt")}, // for mirrors on https
	{"busybox-static", staticBusybox},
	{"cpio", program("cpio")},
	{"kmod", program("depmod")},
	{"e2fsprogs", program("mkfs.ext4")},
	{"xz-utils", program("xz")},
	{"systemd", program("systemctl")}, // sets up the units of an image; it need not run here
}

// staticBusybox tells busybox-static from busybox: an initramfs has no libraries.
func staticBusybox() bool {
	f, err := elf.Open("/bin/busybox")
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// installTools installs what is missing on this machine.
func installTools(ctx context.Context, logf func(string, ...any)) error {
	switch {
	case runtime.GOOS != "linux" || runtime.GOARCH != "amd64":
		return fmt.Errorf("%w: it needs linux/amd64, this is %s/%s", ErrUnable, runtime.GOOS, runtime.GOARCH)
	case os.Geteuid() != 0:
		return fmt.Errorf("%w: it needs root, for network namespaces and taps", ErrUnable)
	case !file("/dev/net/tun")():
		return fmt.Errorf("%w: no /dev/net/tun", ErrUnable)
	}
	if err := addSbin(); err != nil {
		return err
	}
	missing := missingPackages()
	if len(missing) > 0 {
		logf("lab: installing %s", strings.Join(missing, " "))
		if err := aptInstall(ctx, missing); err != nil {
			return fmt.Errorf("%w: %w", ErrUnable, err)
		}
		if missing = missingPackages(); len(missing) > 0 {
			return fmt.Errorf("%w: still missing after installation: %s", ErrUnable, strings.Join(missing, " "))
		}
	}
	version, err := qemuVersion(ctx)
	if err == nil {
		err = checkQEMU(version)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnable, err)
	}
	return nil
}

// addSbin adds the directories of system programs to PATH, which a bare environment lacks.
func addSbin() error {
	path := os.Getenv("PATH")
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if !has(strings.Split(path, ":"), dir) {
			path += ":" + dir
		}
	}
	return os.Setenv("PATH", path)
}

func missingPackages() []string {
	var missing []string
	for _, n := range needs {
		if !n.present() {
			missing = append(missing, n.pkg)
		}
	}
	return missing
}

// aptInstall installs packages. It updates apt's lists only if the present ones do not suffice.
func aptInstall(ctx context.Context, packages []string) error {
	install := append([]string{"apt-get", "-qy", "--no-install-recommends", "install"}, packages...)
	if run(ctx, install...) == nil {
		return nil
	}
	if err := run(ctx, "apt-get", "-q", "update"); err != nil {
		return err
	}
	return run(ctx, install...)
}

// run runs a non-interactive program that dies with this process. The error has the end of its output.
func run(ctx context.Context, argv ...string) error {
	return runIn(ctx, nil, argv...)
}

func runIn(ctx context.Context, prepare func(*exec.Cmd), argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if prepare != nil {
		prepare(cmd)
	}
	// The signal comes when the parent's thread ends, so this one is kept.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, tail(string(out), 30))
	}
	return nil
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	qemuProgram = "qemu-system-x86_64"
	hostMemory  = "2560M"

	// eager-fpu: QEMU's XSAVE and XRSTOR raise no #NM when CR0.TS is set, so Xen's lazy switching would mix the
	// registers of domains. bootscrub: memory that was never written needs no room in a snapshot.
	xenOptions = "console=com1 com1=115200,8n1 dom0_mem=960M,max:960M loglvl=warning guest_loglvl=warning spec-ctrl=eager-fpu bootscrub=0"

	dom0Options = "root=/dev/vda console=hvc0 net.ifnames=0 quiet mitigations=off systemd.show_status=0"
)

// A machine says how to start the QEMU of one host.
type machine struct {
	hostSpec
	image  image  // hypervisor, kernel, initramfs
	disk   string // qcow2, written to
	san    string // raw, of sanSize bytes, written to by both hosts
	memory string // file behind the memory; empty: none
	shared bool   // memory is written to that file, and not to a private copy
	frozen bool   // start without running, ready for an incoming migration
	dir    string // for the console and the monitor
	lacks  string // features that its processor lacks: ",-avx2"
}

func (m machine) console() string { return filepath.Join(m.dir, "console.log") }
func (m machine) monitor() string { return filepath.Join(m.dir, "monitor") }

// args returns QEMU's arguments.
//
//   - smap, smep: QEMU 7.2 emulates SMAP wrongly for a PV dom0.
//   - rdtscp: QEMU reports an intercepted RDTSCP as RDTSC, and Xen kills the guest.
//   - aes, pclmulqdq: emulated instruction by instruction, AES-GCM moves a third of what ChaCha20 in plain code does,
//     which TLS chooses without them.
//   - erms: emulated byte by byte, so that what the kernel, Xen and libc copy with it goes at half the speed.
//   - The console is a file: a socket that nobody reads would block the host.
func (m machine) args() []string {
	dom0 := fmt.Sprintf("%s systemd.machine_id=%s lab.name=%s lab.lan4=%v/%d lab.lan6=%v/%d lab.mgmt4=%v/24",
		dom0Options, m.machineID, m.name, m.lan4, lanBits4, m.lan6, lanBits6, m.mgmt4)
	args := []string{
		"-name", "xlft-lab-" + m.name,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "tcg,thread=multi",
		"-cpu", "max,-smap,-smep,-rdtscp,-aes,-pclmulqdq,-erms" + m.lacks,
		"-smp", "1",
		"-m", hostMemory,
		"-chardev", "file,id=console,append=on,path=" + m.console(),
		"-serial", "chardev:console",
		"-qmp", "unix:" + m.monitor() + ",server=on,wait=off",
		"-kernel", m.image.xen,
		"-append", xenOptions,
		"-initrd", fmt.Sprintf("%s %s,%s", m.image.kernel, dom0, m.image.initramfs),
		"-drive", "file=" + m.disk + ",if=virtio,format=qcow2,cache=unsafe,discard=unmap",
		"-netdev", "tap,id=lan,ifname=" + m.lanTap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=lan,romfile=,mac=" + m.lanMAC,
		"-netdev", "tap,id=mgmt,ifname=" + m.mgmtTap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=mgmt,romfile=,mac=" + m.mgmtMAC,
		"-drive", "file=" + m.san + ",if=none,id=san,format=raw,cache=unsafe,file.locking=off",
		"-device", "virtio-blk-pci,drive=san,share-rw=on,addr=0x10", // after the host's own disk
	}
	if m.memory == "" {
		args = append(args, "-machine", "q35")
	} else {
		share := "off"
		if m.shared {
			share = "on"
		}
		args = append(args, "-machine", "q35,memory-backend=ram",
			"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%s,mem-path=%s,share=%s", hostMemory, m.memory, share))
	}
	if m.frozen {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// A qemu is a running QEMU.
type qemu struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when the process has been reaped
}

// startQEMU starts the machine on the namespace's thread: QEMU dies with that thread, however this process ends.
func startQEMU(ns *namespace, m machine) (*qemu, error) {
	log, err := os.OpenFile(filepath.Join(m.dir, "qemu.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := os.Remove(m.monitor()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	cmd := exec.Command(qemuProgram, m.args()...)
	cmd.Dir = m.dir
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: Ctrl-C is for the test process, which ends QEMU itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := ns.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	q := &qemu{cmd: cmd, gone: make(chan struct{})}
	go func() {
		cmd.Wait() // it is killed as a rule; qemu.log has the reason otherwise
		close(q.gone)
	}()
	return q, nil
}

func (q *qemu) pid() int { return q.cmd.Process.Pid }

func (q *qemu) signal(sig syscall.Signal) error { return q.cmd.Process.Signal(sig) }

// kill ends QEMU as a power cut ends a host.
func (q *qemu) kill() {
	q.cmd.Process.Kill() // an error means that it is gone
	<-q.gone
}

// alive returns an error if QEMU has ended.
func (q *qemu) alive() error {
	select {
	case <-q.gone:
		return errors.New("QEMU ended: " + q.cmd.ProcessState.String())
	default:
		return nil
	}
}

func qemuVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, qemuProgram, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", qemuProgram, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// checkQEMU refuses versions that are known not to work.
func checkQEMU(version string) error {
	var major, minor int
	if _, err := fmt.Sscanf(version, "QEMU emulator version %d.%d", &major, &minor); err != nil {
		return fmt.Errorf("QEMU says it is %q: %w", version, err)
	}
	if major >= 10 {
		return fmt.Errorf("QEMU %d.%d does not run PVH guests under emulation (it mistakes a read of CR0 for no exit); the lab needs Debian 12's 7.2", major, minor)
	}
	return nil
}

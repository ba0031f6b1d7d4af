package processes

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"xlft/netbuffer/netbuffertest"
)

const domainName = "web1"

// A host has power, domains, and two units: its receiver, and a protector of the
// domain.
type host struct {
	w    *World
	name string
	dir  string
	hv   net.Listener

	// Guarded by the world's lock.
	on      bool
	domains map[uint32]*domain
	paths   map[uint32]*netbuffertest.Path
	users   map[net.Conn]int // processes that talk to the hypervisor
	trap    *trap

	boot     int
	socket   *os.File // the receiver's, as systemd keeps it
	receiver *unit
	protects *unit
	agent    net.Listener
	deafBMC  bool // the fence agent fails
}

func (w *World) newHost(name string) (*host, error) {
	h := &host{w: w, name: name, dir: filepath.Join(w.dir, name), domains: map[uint32]*domain{}, paths: map[uint32]*netbuffertest.Path{}, users: map[net.Conn]int{}}
	h.receiver = &unit{h: h, name: "receiver", args: []string{"receive"}}
	h.protects = &unit{h: h, name: "protector", args: []string{"protect", "--", domainName}}
	return h, os.MkdirAll(filepath.Join(h.dir, "state"), 0o755)
}

// modes are what starts a checkpoint; the seed says which.
var modes = []string{"event", "strict", "interval"}

// configure writes a host's configuration.
func (h *host) configure(fingerprint string) error {
	peer := other(h.name)
	arbiter, fence := "type = \"none\"\naccept_split_brain = true", ""
	if h.w.o.Arbiter == "fence" {
		arbiter = "type = \"fence\""
		fence = fmt.Sprintf("[peer.%s.fence]\nagent = %q\ntimeout = \"5s\"\noptions = { plug = %q }\n", peer, filepath.Join(h.dir, "agent"), peer)
	}
	script := fmt.Sprintf("#!/bin/sh\n%s=%s exec %s\n", agentEnv, filepath.Join(h.dir, "fence"), os.Args[0])
	if err := os.WriteFile(filepath.Join(h.dir, "agent"), []byte(script), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(`[host]
name = %q
identity = %q
state_dir = %q
run_dir = %q
[receive]
checkpoint_memory = "16MiB"
page_cache = "64KiB"
[arbiter]
%s
[peer.%s]
address = "%s:7789"
fingerprint = %q
%s
[default]
backup = %q
mode = %q
epoch_max = "50ms"
failure_timeout = %q
ack_timeout = "10s"
suspend_timeout = "5s"
retry_delay = "500ms"
`, h.name, filepath.Join(h.dir, "id"), filepath.Join(h.dir, "state"), h.runDir(), arbiter, peer, addresses[peer], fingerprint, fence, peer, modes[h.w.o.Seed%uint64(len(modes))], failureTimeout)
	return os.WriteFile(h.config(), []byte(text), 0o644)
}

func (h *host) config() string { return filepath.Join(h.dir, "xlft.toml") }
func (h *host) runDir() string { return filepath.Join(h.dir, "run") }

// powerOn boots the host. Its receiver starts by itself.
func (h *host) powerOn() error {
	h.w.power.Lock()
	defer h.w.power.Unlock()
	if h.on {
		return nil
	}
	if err := h.w.net.plug(h.name); err != nil {
		return err
	}
	var err error
	if h.socket, err = h.w.net.listen(h.name); err != nil {
		return err
	}
	h.boot++
	boot := fmt.Sprintf("%08x-0000-4000-8000-00000000000%s\n", h.boot, h.name)
	if err := os.WriteFile(filepath.Join(h.dir, "boot_id"), []byte(boot), 0o644); err != nil {
		return err
	}
	h.w.mu.Lock()
	h.on = true
	h.w.mu.Unlock()
	h.receiver.start()
	return nil
}

// powerOff takes the host's power, as far as that is not done. It reports whether
// that took the only copy of the domain.
func (h *host) powerOff(why string) (bare bool) {
	h.w.power.Lock()
	defer h.w.power.Unlock()
	return h.cutPower(why)
}

func (h *host) cutPower(why string) (bare bool) {
	w := h.w
	if w.off(h) {
		return false
	}
	// First nothing leaves any more: the processes have some moments to live.
	w.net.unplug(h.name)
	w.mu.Lock()
	h.on = false
	w.say("%s: power off (%s)", h.name, why)
	l := w.lifeOn(h)
	for _, d := range h.domains {
		bare = bare || d.life != nil && d.life == l && !w.isSafe(l)
		d.gone = true
	}
	for _, p := range h.paths {
		p.Destroy()
	}
	clear(h.domains)
	clear(h.paths)
	var pids []int
	for c, pid := range h.users {
		pids = append(pids, pid)
		c.Close()
	}
	w.mu.Unlock()
	h.receiver.kill()
	h.protects.kill()
	for _, pid := range pids {
		if pid > 0 && !dead(pid) && comm(pid) == "xlft" {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	h.socket.Close()
	w.net.remove(h.name)
	os.RemoveAll(h.runDir())
	return bare
}

func comm(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}

// boots the domain anew.
func (h *host) create() {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	conf, _ := json.Marshal(map[string]any{
		"c_info": map[string]any{"type": "pvh", "name": domainName, "uuid": uuid},
		"b_info": map[string]any{"max_memkb": pages * 4, "target_memkb": pages * 4, "max_vcpus": 1, "avail_vcpus": []int{0}},
	})
	d := h.w.newDomain(h, domainName, conf)
	h.w.birth(d)
	h.w.say("%s: the domain boots", h.name)
}

// A unit is a service as systemd has it.
type unit struct {
	h    *host
	name string
	args []string

	mu      sync.Mutex
	active  bool // systemd would start it again
	cmd     *exec.Cmd
	gen     int
	stopped bool          // an operator or the host's end wants no more of it
	ended   chan struct{} // closed when its supervisor is done
	proven  bool          // it said "protected"
}

func (u *unit) start() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.active {
		return
	}
	u.active, u.stopped, u.proven, u.ended = true, false, false, make(chan struct{})
	go u.supervise(u.ended)
}

// restartDelay is RestartSec.
const restartDelay = 200 * time.Millisecond

func (u *unit) supervise(ended chan struct{}) {
	defer close(ended)
	for {
		last := u.h.w.lastDomain()
		u.mu.Lock()
		if u.stopped {
			u.active = false
			u.mu.Unlock()
			return
		}
		cmd, err := u.spawn()
		u.cmd = cmd
		u.gen++
		u.mu.Unlock()
		if err != nil {
			u.h.w.violate("harness", "start %s of %s: %v", u.name, u.h.name, err)
			return
		}
		err = cmd.Wait()
		code := cmd.ProcessState.ExitCode()
		u.mu.Lock()
		stopped := u.stopped
		if code == 3 || code == 0 {
			u.active = false
		}
		u.cmd = nil
		proven := u.proven
		u.mu.Unlock()
		if code == 3 || code == 0 {
			if u == u.h.protects {
				u.h.w.heard(u.h.w.lifeOn(u.h), false)
			}
			u.h.w.say("%s: %s ended with status %d", u.h.name, u.name, code)
			if proven && !stopped {
				u.h.gaveUp(u.name, code, last)
			}
			return
		}
		if !stopped {
			u.h.w.say("%s: %s ended: %v", u.h.name, u.name, err)
			time.Sleep(restartDelay)
		}
	}
}

// gaveUp: a unit decided to end that nobody stopped. Last is the newest domain that
// there was at its start: a newer one came here by a takeover.
func (h *host) gaveUp(unit string, code int, last uint32) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.w.stopped || !h.on {
		return
	}
	for _, d := range h.domains {
		if unit == "protector" && d.life != nil && d.id <= last {
			h.w.violate("P6", "the protector on %s ended with status %d, and the domain still is there", h.name, code)
		}
	}
	if unit == "receiver" {
		h.w.violate("P6", "the receiver on %s ended by itself", h.name)
	}
}

func (u *unit) spawn() (*exec.Cmd, error) {
	h := u.h
	script := `mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && export LISTEN_PID=$$ && exec "$@"`
	args := append([]string{"netns", "exec", h.w.net.ns(h.name), "sh", "-c", script, "sh", filepath.Join(h.dir, "boot_id"), h.w.o.Binary, "--config", h.config()}, u.args...)
	cmd := exec.Command("ip", args...)
	log, err := os.OpenFile(filepath.Join(h.dir, u.name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- started at %.2f\n", h.w.now().Seconds())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "XLFT_SIMXEN="+filepath.Join(h.dir, "xen"), "GOTRACEBACK=all", "GORACE=atexit_sleep_ms=0")
	if u.name == "receiver" {
		cmd.ExtraFiles = []*os.File{h.socket}
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, cmd.Start()
}

// pid of the process; 0 if there is none.
func (u *unit) pid() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cmd == nil || u.cmd.Process == nil {
		return 0
	}
	return u.cmd.Process.Pid
}

func (u *unit) isActive() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.active
}

// signal sends a signal to the process, if there is one, under the lock under which
// its end is noticed.
func (u *unit) signal(s syscall.Signal) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.cmd != nil && u.cmd.Process != nil && u.cmd.Process.Signal(s) == nil
}

// signalTo sends a signal to the process that has this id, if it still is there.
func (u *unit) signalTo(pid int, s syscall.Signal) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.cmd != nil && u.cmd.Process != nil && u.cmd.Process.Pid == pid && u.cmd.Process.Signal(s) == nil
}

// kill ends the unit for good.
func (u *unit) kill() {
	u.mu.Lock()
	u.stopped = true
	if u.cmd != nil {
		u.cmd.Process.Kill()
	}
	ended, active := u.ended, u.active
	u.mu.Unlock()
	if active {
		<-ended
	}
	u.mu.Lock()
	u.active = false
	u.mu.Unlock()
}

// xlft runs a command on the host.
func (h *host) xlft(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	all := append([]string{"netns", "exec", h.w.net.ns(h.name), h.w.o.Binary, "--config", h.config()}, args...)
	cmd := exec.CommandContext(ctx, "ip", all...)
	cmd.Env = append(os.Environ(), "XLFT_SIMXEN="+filepath.Join(h.dir, "xen"))
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

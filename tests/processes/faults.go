package processes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A fault is something that was done: to a host, by its name, or to the "network", to the "agents", by an "operator".
type fault struct {
	kind string
	host string
	from time.Duration
}

// A kind is a kind of fault.
type kind struct {
	name string
	// split: with the arbiter none it may lead, as documented, to two running
	// domains.
	split bool
	fence bool // only with the arbiter fence
	fatal bool // it takes a copy of the domain
	// act does it, and returns what undoes it and for how long it lasts; nil if
	// nothing is to be undone. It returns an empty host if it could not be done.
	act func(w *World, on, peer *host, d dice) (host string, undo func(), lasts time.Duration)
}

// torn is a record that can't be read.
const torn = "{"

// dice draws a time between two.
type dice func(from, to time.Duration) time.Duration

// failureTimeout is the hosts' failure_timeout.
const failureTimeout = time.Second

const ft = failureTimeout

// kinds are the faults that there are. On is the host that runs the domain.
var kinds = []kind{
	{name: "stop the protector", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return stop(d(ft/10, 4*ft), on, on.protects)
	}},
	{name: "stop the receiver", act: func(w *World, _, peer *host, d dice) (string, func(), time.Duration) {
		most := 4 * ft
		if w.o.Arbiter == "none" {
			most = 2 * ft // beyond three times the failure timeout a split brain is documented
		}
		return stop(d(ft/10, most), peer, peer.receiver)
	}},
	{name: "stop all of the primary", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return stop(d(ft/10, 4*ft), on, on.protects, on.receiver)
	}},
	{name: "kill the protector", act: func(w *World, on, _ *host, _ dice) (string, func(), time.Duration) {
		return kill(on, on.protects)
	}},
	{name: "kill the protector and damage its record", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		host, _, _ := kill(on, on.protects)
		for on.protects.pid() != 0 {
			time.Sleep(time.Millisecond) // nobody writes the record any more
		}
		if host == "" {
			return "", nil, 0
		}
		_, undo, lasts := w.damage(on, d(ft/10, 2*ft))
		return host, undo, lasts
	}},
	{name: "kill the receiver", fatal: true, act: func(w *World, _, peer *host, _ dice) (string, func(), time.Duration) {
		return kill(peer, peer.receiver)
	}},
	{name: "kill the restore worker", fatal: true, act: func(w *World, _, peer *host, _ dice) (string, func(), time.Duration) {
		return killWorker(w, peer)
	}},
	{name: "starve the protector", split: true, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return starve(on, on.protects, d(ft/2, 4*ft), d(time.Millisecond, 10*time.Millisecond))
	}},
	{name: "starve the receiver", split: true, act: func(w *World, _, peer *host, d dice) (string, func(), time.Duration) {
		return starve(peer, peer.receiver, d(ft/2, 4*ft), d(time.Millisecond, 10*time.Millisecond))
	}},
	{name: "stutter the protector", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return stutter(on, on.protects, d(ft, 4*ft))
	}},
	{name: "stutter the receiver", split: true, act: func(w *World, _, peer *host, d dice) (string, func(), time.Duration) {
		return stutter(peer, peer.receiver, d(ft, 4*ft))
	}},
	{name: "no descriptors for the protector", split: true, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return noFiles(on, on.protects, d(ft/2, 4*ft))
	}},
	// It can't store what comes, and gives its copy up.
	{name: "no descriptors for the receiver", split: true, fatal: true, act: func(w *World, _, peer *host, d dice) (string, func(), time.Duration) {
		return noFiles(peer, peer.receiver, d(ft/2, 4*ft))
	}},
	{name: "cut the network", split: true, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return w.cable("cut", on, w.net.cut, d(ft/10, 4*ft))
	}},
	{name: "take the link down", split: true, act: func(w *World, _, peer *host, d dice) (string, func(), time.Duration) {
		return w.cable("link down", peer, w.net.down, d(ft/10, 4*ft))
	}},
	{name: "nobody hears the primary", split: true, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return w.cable("mute", on, w.net.mute, d(ft/10, 4*ft))
	}},
	{name: "nobody hears the backup", split: true, act: func(w *World, _, peer *host, d dice) (string, func(), time.Duration) {
		return w.cable("mute", peer, w.net.mute, d(ft/10, 4*ft))
	}},
	{name: "slow network", split: true, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		return w.cable("slow", on, w.net.slow, d(ft, 4*ft))
	}},
	{name: "power cut at the primary", fatal: true, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		if w.off(on) {
			return "", nil, 0
		}
		w.takePower(on)
		return on.name, nil, 0
	}},
	{name: "power cut at the backup", fatal: true, act: func(w *World, _, peer *host, _ dice) (string, func(), time.Duration) {
		if w.off(peer) {
			return "", nil, 0
		}
		w.takePower(peer)
		return peer.name, nil, 0
	}},
	{name: "power cut at the primary while the receiver stands still", fatal: true, act: func(w *World, on, peer *host, d dice) (string, func(), time.Duration) {
		return standing(w, on, peer, d, func() { w.takePower(on) })
	}},
	{name: "power cut at the primary after the network is cut", fatal: true, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		if w.off(on) {
			return "", nil, 0
		}
		_, mend, _ := w.cable("cut", on, w.net.cut, 0)
		if mend == nil {
			return "", nil, 0
		}
		defer mend()
		time.Sleep(d(60*time.Millisecond, ft/2)) // a checkpoint is on its way
		w.takePower(on)
		return on.name, nil, 0
	}},
	{name: "kill the protector while the receiver stands still", act: func(w *World, on, peer *host, d dice) (string, func(), time.Duration) {
		return standing(w, on, peer, d, func() { on.protects.signal(syscall.SIGKILL) })
	}},
	{name: "kill the protector at a call", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		pid := on.protects.pid()
		if pid == 0 {
			return "", nil, 0
		}
		return w.setTrap(on, &trap{pid: pid, calls: int(d(1, 60)), before: d(0, 2) == 0}, ft)
	}},
	takenDown("pause", false), takenDown("unpause", true), takenDown("unpause", false),
	{name: "kill the receiver in a switch-over", fatal: true, act: func(w *World, on, peer *host, d dice) (string, func(), time.Duration) {
		w.switchOver(on)
		time.Sleep(d(0, 120*time.Millisecond))
		return kill(peer, peer.receiver)
	}},
	{name: "kill the protector in a switch-over", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		w.switchOver(on)
		time.Sleep(d(0, 120*time.Millisecond))
		return kill(on, on.protects)
	}},
	{name: "kill the protector at a call in a switch-over", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		pid := on.protects.pid()
		if pid == 0 {
			return "", nil, 0
		}
		w.switchOver(on)
		time.Sleep(d(0, 50*time.Millisecond))
		return w.setTrap(on, &trap{pid: pid, calls: int(d(1, 20)), before: d(0, 2) == 0}, ft/2)
	}},
	workerDies("complete", true, false), workerDies("complete", false, false),
	workerDies("rename", true, false), workerDies("rename", false, false),
	workerDies("unpause", true, false), workerDies("unpause", false, false),
	workerDies("complete", false, true), workerDies("rename", false, true), workerDies("unpause", false, true),
	{name: "the fence agents fail", fence: true, act: func(w *World, on, peer *host, d dice) (string, func(), time.Duration) {
		undo, err := w.force("agents", func(deaf bool) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			on.deafBMC, peer.deafBMC = deaf, deaf
			return nil
		})
		return done("agents", undo, d(ft, 4*ft), err)
	}},
	{name: "switch over", act: func(w *World, on, _ *host, _ dice) (string, func(), time.Duration) {
		w.operator.Go(func() {
			out, err := on.xlft(15*time.Second, "ft-failover", domainName)
			w.say("ft-failover on %s: %s %v", on.name, out, err)
		})
		return "operator", nil, 0
	}},
	{name: "stop and start the protection", act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		w.stopProtection(on, d(ft/10, ft))
		return "operator", nil, 0
	}},
}

func (w *World) off(h *host) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !h.on
}

// done is what a kind of fault returns.
func done(what string, undo func(), lasts time.Duration, err error) (string, func(), time.Duration) {
	if err != nil {
		return "", nil, 0
	}
	return what, undo, lasts
}

// cable does something to a host's cable. One without power has none.
func (w *World) cable(what string, h *host, set func(host string, on bool) error, lasts time.Duration) (string, func(), time.Duration) {
	undo, err := w.force(what+" "+h.name, func(on bool) error {
		err := set(h.name, on)
		if !on && w.off(h) {
			return nil
		}
		return err
	})
	return done("network", undo, lasts, err)
}

func stop(lasts time.Duration, h *host, us ...*unit) (string, func(), time.Duration) {
	h.status() // its last word for some time
	var undo []func()
	for _, u := range us {
		if f, err := u.stand(); err == nil {
			undo = append(undo, f)
		}
	}
	if len(undo) == 0 {
		return "", nil, 0
	}
	return h.name, func() {
		for _, f := range undo {
			f()
		}
	}, lasts
}

func kill(h *host, u *unit) (string, func(), time.Duration) {
	h.status()
	if !u.signal(syscall.SIGKILL) {
		return "", nil, 0
	}
	return h.name, nil, 0
}

// standing does something while a checkpoint is on its way, or may be.
func standing(w *World, on, peer *host, d dice, do func()) (string, func(), time.Duration) {
	if w.off(on) {
		return "", nil, 0
	}
	on.status()
	undo, err := peer.receiver.stand()
	if err == nil {
		time.Sleep(d(60*time.Millisecond, ft/2))
		do()
	}
	return done(on.name, undo, d(ft/100, ft), err)
}

// workerDies kills the restore worker in a switch-over, at a step of its work, and
// with it the receiver, if that is said.
func workerDies(op string, before, both bool) kind {
	name := "kill the restore worker after its "
	if before {
		name = "kill the restore worker before its "
	}
	if name += op; both {
		name += ", with the receiver"
	}
	return kind{name: name, fatal: true, act: func(w *World, on, peer *host, d dice) (string, func(), time.Duration) {
		t := &trap{op: op, calls: 1, before: before}
		if both {
			t.with = peer.receiver
		}
		host, undo, lasts := w.setTrap(peer, t, ft)
		if host != "" {
			w.switchOver(on)
		}
		return host, undo, lasts
	}}
}

// takenDown kills the protector when an operator ends the protection, while it has
// the domain paused to take its gate down, or right after.
func takenDown(op string, before bool) kind {
	name := "kill the protector after its "
	if before {
		name = "kill the protector before its "
	}
	return kind{name: name + op, act: func(w *World, on, _ *host, d dice) (string, func(), time.Duration) {
		pid := on.protects.pid()
		if pid == 0 {
			return "", nil, 0
		}
		host, undo, lasts := w.setTrap(on, &trap{pid: pid, op: op, calls: 1, before: before}, ft)
		if host != "" {
			w.stopProtection(on, d(ft/10, ft))
		}
		return host, undo, lasts
	}}
}

// stopProtection is an operator who ends the protection, and starts it again after a
// pause.
func (w *World) stopProtection(on *host, pause time.Duration) {
	start, _ := w.force("no protection", func(stopped bool) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stopped = stopped
		return nil
	})
	w.heard(w.lifeOn(on), false)
	w.operator.Go(func() {
		out, err := on.xlft(15*time.Second, "ft-stop", domainName)
		w.say("ft-stop on %s: %s %v", on.name, out, err)
		time.Sleep(pause)
		start()
	})
}

// damage makes the record of the domain unreadable.
func (w *World) damage(h *host, lasts time.Duration) (string, func(), time.Duration) {
	path, good := filepath.Join(h.dir, "state", domainName+".json"), []byte(nil)
	undo, err := w.force("damage "+path, func(damaged bool) (err error) {
		if !damaged {
			if b, err := os.ReadFile(path); err != nil || string(b) != torn {
				return err // somebody wrote it anew
			}
			return os.WriteFile(path, good, 0o600)
		}
		if good, err = os.ReadFile(path); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(torn), 0o600)
	})
	return done(h.name, undo, lasts, err)
}

// setTrap sets a trap on a host that has none.
func (w *World) setTrap(h *host, t *trap, lasts time.Duration) (string, func(), time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.trap != nil {
		return "", nil, 0
	}
	h.trap = t
	return h.name, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if h.trap == t {
			h.trap = nil
		}
	}, lasts
}

// switchOver asks for a switch-over, past the command, which takes its time.
func (w *World) switchOver(on *host) {
	w.outmu.Lock()
	w.faults = append(w.faults, &fault{kind: "switch over", from: w.now(), host: "operator"})
	w.outmu.Unlock()
	w.operator.Go(func() {
		var ended struct{ Outcome string }
		err := on.post("/failover", &ended)
		w.say("switch-over from %s: %s %v", on.name, ended.Outcome, err)
	})
}

// killWorker kills what talks to the hypervisor and is no unit.
func killWorker(w *World, h *host) (string, func(), time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, pid := range h.users {
		if isWorker(pid) {
			syscall.Kill(pid, syscall.SIGKILL)
			return h.name, nil, 0
		}
	}
	return "", nil, 0
}

func args(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// stutter stops and continues a process ten times a second, or so.
func stutter(h *host, u *unit, lasts time.Duration) (string, func(), time.Duration) {
	if u.pid() == 0 {
		return "", nil, 0
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			undo, err := u.stand()
			time.Sleep(150 * time.Millisecond)
			if err == nil {
				undo()
			}
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return h.name, func() { close(stop); <-ended }, lasts
}

// starve gives a process a part of each half a second of a processor.
func starve(h *host, u *unit, lasts, part time.Duration) (string, func(), time.Duration) {
	pid := u.pid()
	g := h.w.cgroup(h.name + u.name)
	if g == "" && !h.w.noGroups {
		h.w.noGroups = true
		h.w.say("nobody is starved: this machine has no cgroup with a limit of processor time")
	}
	if pid == 0 || g == "" {
		return "", nil, 0
	}
	if err := os.WriteFile(filepath.Join(g, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
		return "", nil, 0
	}
	undo, err := h.w.force("starve "+g, func(starved bool) error {
		us := part.Microseconds()
		file, tight, free := "cpu.max", fmt.Sprintf("%d 500000", us), "max 100000"
		if exists(filepath.Join(g, "cpu.cfs_quota_us")) {
			os.WriteFile(filepath.Join(g, "cpu.cfs_period_us"), []byte("500000"), 0)
			file, tight, free = "cpu.cfs_quota_us", fmt.Sprint(us), "-1"
		}
		if !starved {
			tight = free
		}
		return os.WriteFile(filepath.Join(g, file), []byte(tight), 0)
	})
	return done(h.name, undo, lasts, err)
}

// cgroup returns a group of the run's own with a limit of processor time; "" if
// this machine lets nobody make one.
func (w *World) cgroup(name string) string {
	for _, root := range []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
		g := filepath.Join(root, fmt.Sprintf("%s%d%s", prefix, os.Getpid(), name))
		if os.Mkdir(g, 0o755) != nil && !exists(g) {
			continue
		}
		if exists(filepath.Join(g, "cpu.cfs_quota_us")) || exists(filepath.Join(g, "cpu.max")) {
			w.groups[g] = true
			return g
		}
		os.Remove(g)
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// noFiles lets a process open nothing more.
func noFiles(h *host, u *unit, lasts time.Duration) (string, func(), time.Duration) {
	undo, err := u.limit()
	return done(h.name, undo, lasts, err)
}

// takePower takes the power of a host. A domain that is said to be protected must
// survive that, and one that runs elsewhere.
func (w *World) takePower(h *host) {
	st, err := h.status()
	gone := !st.Protected && w.unable(w.host(other(h.name)))
	if h.powerOff(fmt.Sprintf("fault; %s, protected: %v, %v", st.State, st.Protected, err)) || gone && w.lifeOn(h) != nil {
		w.say("that was the only copy")
		w.excused()
	}
}

// excused: the domain may get lost in this round.
func (w *World) excused() {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	w.losses = 2
}

// judgeFence: a host is fenced only if something was done to it, to its processes or
// to the network. The caller has outmu.
func (w *World) judgeFence(by, target *host) {
	w.losses++
	for _, f := range w.faults { // since all was well
		if f.host != by.name && f.host != "operator" {
			return
		}
	}
	w.violateLocked("C1", "%s fences %s, to which nothing was done", by.name, target.name)
}

// judgeTakeover: nor is a domain taken over. The caller has outmu.
func (w *World) judgeTakeover(by, from string) {
	for _, f := range w.faults {
		if f.host != by {
			return
		}
	}
	w.violateLocked("C1", "%s takes the domain over, and nothing was done to %s", by, from)
}

// Package restore makes domains from checkpointed streams, each in a worker
// process of its own, because libxl's restore blocks until the stream ends.
//
// The one rule a caller must know: until Activate a domain lives and dies with
// its worker's control socket. Whatever kills the receiver kills the replica and
// never starts it.
package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"xlft/savestream"
	"xlft/xlft"

	"xlft/xlft/backup"
	"xlft/xlft/internal/cpuid"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

// Restorer is a backup.Restorer on this host.
type Restorer struct {
	Host *xen.Host
	Log  *zap.Logger
	// Command starts a worker: this program's restore-worker.
	Command []string
	// RunDir has a lock for each replica, which its worker holds.
	RunDir string
	// Runs, if set, is called for a domain that was taken over and whose worker died
	// before it had said so.
	Runs func(domain string)
	// CheckDisk says why a disk could not be copied to this host; nil if it could.
	CheckDisk func(domain string, d wire.Disk) error
}

func (r *Restorer) runs(domain string) {
	if r.Runs != nil {
		r.Runs(domain)
	}
}

// scriptDir is where libxl looks for hotplug scripts.
const scriptDir = "/etc/xen/scripts"

// overheadKiB is what a domain needs beyond its memory: page tables, libxl's
// slack and per-vCPU state.
func overheadKiB(c *domconf.Config) uint64 {
	return c.Build.ShadowMemKiB + c.Build.MaxMemKiB/128 + 8<<10
}

// Check returns what this host lacks to take the domain.
func (r *Restorer) Check(_ context.Context, o wire.Offer) []wire.Problem {
	var ps []wire.Problem
	add := func(advice, format string, args ...any) {
		ps = append(ps, wire.Problem{What: fmt.Sprintf(format, args...), Advice: advice})
	}
	c, err := domconf.Parse(o.Config)
	if err != nil {
		add("Use the same xlft version on both hosts.", "%v", err)
		return ps
	}
	info, err := r.Host.Info()
	if err != nil {
		add("Look at the receiver's log on the backup.", "%v", err)
		return ps
	}
	for _, p := range c.Problems(info.ShadowPV) {
		add(p.Advice, "%s", p.What)
	}
	if older(info.Version, o.XenVersion) {
		add("Update Xen on the backup.", "Xen %s is older than the primary's %s, and could not read the domain's state", info.Version, o.XenVersion)
	}
	if c.Create.Type != "pv" && !info.HAP {
		add("Switch hardware-assisted paging on in the firmware or on Xen's command line.", "Xen has no hardware-assisted paging, which a %s domain needs", c.Create.Type)
	}
	if host, err := r.Host.MostCPUID(c.Create.Type == "pv"); err != nil {
		add("Look at the receiver's log on the backup.", "%v", err)
	} else if len(o.CPUID) > 0 {
		ps = append(ps, cpuProblems(cpuid.Compare(o.CPUID, host))...)
	}
	all, err := r.Host.Domains()
	if err != nil {
		add("Look at the receiver's log on the backup.", "%v", err)
	}
	for _, d := range all {
		if d.Name == o.Domain || xlft.SameUUID(d.UUID, o.UUID) {
			add("Destroy or rename it, if it is not the one to protect.", "a domain of that name or UUID is there already (%s, id %d)", d.Name, d.ID)
		}
	}
	if need := c.Build.MaxMemKiB + overheadKiB(c); info.FreeKiB < need {
		add("Free memory on the backup: destroy domains or make dom0 smaller.", "%d MiB of memory are needed, %d MiB are free", need>>10, info.FreeKiB>>10)
	}
	for _, d := range o.Disks {
		if err := r.CheckDisk(o.Domain, d); err != nil {
			add("See docs/disks.md.", "disk %s can't be copied to this host: %v", d.VDev, err)
		}
	}
	for _, d := range c.Disks {
		if d.Copied() {
			if _, err := os.Stat(filepath.Join(scriptDir, domconf.Script)); err != nil {
				add("Install xlft there.", "no hotplug script %s in %s, which disk %s uses", domconf.Script, scriptDir, d.VDev)
			}
			continue
		}
		ps = append(ps, ownPlaces.script(d.Script, "disk "+d.VDev)...)
		// With a script the target is the script's to understand.
		if _, err := os.Stat(d.Target); err != nil && d.Target != "" && d.Script == "" && d.ReadWrite == 0 {
			add("Put the same file or device at the same place on the backup.", "disk %s, which is read-only, is not there: %v", d.VDev, err)
		}
	}
	return append(ps, ownPlaces.nics(c, o.NICs)...)
}

// cpuProblems says what this host's processors lack.
func cpuProblems(m cpuid.Missing) []wire.Problem {
	switch {
	case m.None():
		return nil
	case m.Vendor != "":
		return []wire.Problem{{What: fmt.Sprintf("its processors are of another vendor: %v", m), Advice: "Use hosts with processors of one vendor."}}
	}
	advice := "Use hosts with the same processors, microcode and Xen options."
	if mask := m.Mask(); mask != "" {
		advice = fmt.Sprintf("Hide them from the domain: put %s into its configuration on the primary, and start it again.", mask)
	}
	return []wire.Problem{{What: fmt.Sprintf("its processors lack what the domain was told it has, and may use: %v", m), Advice: advice}}
}

// older compares versions such as "4.17".
func older(a, b string) bool {
	x, y := parts(a), parts(b)
	return x[0] < y[0] || x[0] == y[0] && x[1] < y[1]
}

func parts(v string) (p [2]int) {
	major, minor, _ := strings.Cut(v, ".")
	p[0], _ = strconv.Atoi(major)
	p[1], _ = strconv.Atoi(minor)
	return p
}

// Sweep destroys replicas whose worker died without a chance to. One that this
// host was taking over is left alone: its worker goes through with it. If that one
// died when the domain had its name, Sweep unpauses the domain. What can't be done for
// one domain keeps nobody from the others: Find tries again.
func (r *Restorer) Sweep(takingOver func(domain string) (bool, error)) error {
	all, err := r.Host.Domains()
	if err != nil {
		return err
	}
	for _, d := range all {
		name, replica := strings.CutSuffix(d.Name, suffix)
		log := r.Log.With(zap.String("domain", d.Name), zap.Uint32("domid", d.ID))
		begun, err := takingOver(name)
		if err != nil && replica {
			log.Error("whether this host was taking a domain over is not known", zap.Error(err))
			begun = true // a worker that is alive goes through with it, or destroys it
		}
		alive := false
		if begun && !replica {
			// A record that outlived a power cut is about no domain that is here.
			m, err := r.marked(name)
			begun = err == nil && m.known
		}
		if begun {
			if alive, err = r.working(name); err != nil {
				log.Error("whether a restore worker is alive is not known", zap.Error(err))
				continue
			}
		}
		switch {
		case !replica && (!begun || alive):
			// Not ours, or on its way.
		case !replica:
			if err := r.markRan(name); err != nil {
				log.Error("note that the domain runs", zap.Error(err))
			}
			// That it is not paused any more is no error.
			log.Warn("an earlier receiver and its worker ended in the last step of a takeover; the domain is unpaused", zap.NamedError("unpause", r.Host.Unpause(d.ID)))
			r.runs(d.Name)
		case alive:
			log.Warn("a takeover was under way when the receiver ended; left to its worker")
		default:
			log.Warn("destroying a replica that was left behind")
			if err := r.Host.Destroy(d.ID); err != nil {
				log.Error("destroy a replica that was left behind", zap.Error(err))
			}
		}
	}
	return nil
}

// Find looks for the replica first: a worker renames it when it runs. A replica
// whose worker is dead can't come to run, and is destroyed. It counts as there for as
// long as the receiver that made it is: that may write to the domain's disk.
func (r *Restorer) Find(domain, uuid string) (backup.Found, error) {
	left, err := r.Host.Lookup(domain + suffix)
	switch {
	case err == nil:
		alive, err := r.working(domain)
		if err != nil || alive {
			return backup.FoundReplica, err
		}
		r.Log.Warn("destroying a replica whose worker is dead", zap.String("domain", left.Name), zap.Uint32("domid", left.ID))
		if err := r.Host.Destroy(left.ID); err != nil {
			return backup.FoundReplica, err
		}
	case !errors.Is(err, xen.ErrNoDomain):
		return backup.FoundNothing, err
	}
	all, err := r.Host.Domains()
	if err != nil {
		return backup.FoundNothing, err
	}
	for _, d := range all {
		// By its UUID: the name may be another domain's.
		if uuid != "" && xlft.SameUUID(d.UUID, uuid) && d.Name != domain+suffix || uuid == "" && d.Name == domain {
			return backup.FoundDomain, nil
		}
	}
	switch pid, err := r.predecessor(domain); {
	case err != nil:
		return backup.FoundNothing, err
	case pid != 0:
		r.Log.Warn("the receiver that made a domain's replica has not ended yet", zap.String("domain", domain), zap.Int("pid", pid))
		return backup.FoundReplica, nil
	}
	return backup.FoundNothing, nil
}

func (r *Restorer) lockFile(domain string) string {
	return filepath.Join(r.RunDir, xlft.FileName(domain)+".replica")
}

// lock locks a domain's replica for a worker that is to inherit the file.
func (r *Restorer) lock(domain string) (*os.File, error) {
	if err := os.MkdirAll(r.RunDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(r.lockFile(domain), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("a worker of an earlier replica of %s is still at work: %w", domain, err)
	}
	if err := markWaiting(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// working reports whether a worker of this domain's replica is alive.
func (r *Restorer) working(domain string) (bool, error) {
	f, err := os.OpenFile(r.lockFile(domain), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Restore starts a worker.
func (r *Restorer) Restore(_ context.Context, o wire.Offer) (backup.Replica, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "control")
	control, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		control.Close()
		return nil, fmt.Errorf("restore: %w", err)
	}
	defer pr.Close()
	lock, err := r.lock(o.Domain)
	if err != nil {
		control.Close()
		pw.Close()
		return nil, fmt.Errorf("restore: %w", err)
	}
	defer lock.Close() // the worker keeps its own
	// Not by pw.Fd, which would make it blocking: Close has to free a Write.
	if rc, err := pw.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) }) // smaller is only slower
	}

	cmd := exec.Command(r.Command[0], r.Command[1:]...)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, pr, lock}
	d := &Domain{
		r: r, name: o.Domain, uuid: o.UUID, cmd: cmd, control: control, stream: pw,
		failed: make(chan error, 1), running: make(chan struct{}), exited: make(chan struct{}),
	}
	if err := cmd.Start(); err != nil {
		control.Close()
		pw.Close()
		return nil, fmt.Errorf("start restore worker: %w", err)
	}
	if err := markWorker(lock, cmd.Process.Pid); err != nil {
		r.Log.Warn("who a domain's restore worker is can't be noted", zap.String("domain", o.Domain), zap.Error(err))
	}
	go d.listen()
	if err := json.NewEncoder(control).Encode(order{Config: o.Config, Name: o.Domain}); err != nil {
		d.Destroy()
		return nil, fmt.Errorf("start restore worker: %w", err)
	}
	if err := d.write(savestream.LibxlHeader(), savestream.LibxcContextRecord()); err != nil {
		d.Destroy()
		return nil, err
	}
	return d, nil
}

// Domain is a backup.Replica: a domain that is being restored by a worker.
type Domain struct {
	r       *Restorer
	name    string
	uuid    string
	cmd     *exec.Cmd
	control net.Conn
	stream  *os.File
	ordered atomic.Bool // the worker was told to run it

	failed  chan error
	running chan struct{} // closed when the domain runs
	exited  chan struct{}
	once    sync.Once
}

// listen reads the worker's answers to the end of the process.
func (d *Domain) listen() {
	in := json.NewDecoder(d.control)
	err := errors.New("restore worker ended")
	ran := false
	for {
		var a answer
		if derr := in.Decode(&a); derr != nil {
			break
		}
		if a.Error != "" {
			err = errors.New(a.Error)
		}
		if a.Running {
			ran = true
			close(d.running)
		}
	}
	if werr := d.cmd.Wait(); werr != nil && !ran {
		err = fmt.Errorf("%w (%w)", err, werr)
	}
	if !ran && d.ordered.Load() && d.finish(err) {
		ran = true
		close(d.running)
	}
	if !ran {
		d.failed <- err
	}
	close(d.exited)
}

// finish unpauses a domain whose worker ended after it had given the domain its
// name: the domain is complete, and nobody else would run it. That it is not
// paused any more is no error: the worker may have done that too.
func (d *Domain) finish(why error) bool {
	all, err := d.r.Host.Domains()
	if err != nil {
		return false
	}
	for _, found := range all {
		if xlft.SameUUID(found.UUID, d.uuid) && found.Name != d.name+suffix {
			if err := d.r.markRan(d.name); err != nil {
				d.r.Log.Error("note that the domain runs", zap.String("domain", d.name), zap.Error(err))
			}
			err := d.r.Host.Unpause(found.ID)
			d.r.Log.Warn("a restore worker ended in the last step of a takeover; the receiver took that step",
				zap.String("domain", d.name), zap.NamedError("why", why), zap.NamedError("unpause", err))
			d.r.runs(found.Name)
			return true
		}
	}
	return false
}

func (d *Domain) write(bs ...[]byte) error {
	for _, b := range bs {
		if _, err := d.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// Write feeds the restore.
func (d *Domain) Write(b []byte) (int, error) {
	n, err := d.stream.Write(b)
	if err != nil {
		err = fmt.Errorf("feed restore worker: %w", err)
	}
	return n, err
}

// Checkpoint lets libxc apply what was written.
func (d *Domain) Checkpoint() error { return d.write(savestream.CheckpointEndRecord()) }

// Activate is the point of no return: from its first byte on the worker completes
// the domain and runs it, also if the receiver dies meanwhile.
func (d *Domain) Activate(ctx context.Context) error {
	d.ordered.Store(true)
	if err := json.NewEncoder(d.control).Encode(order{Run: true}); err != nil {
		return fmt.Errorf("tell restore worker to run %s: %w", d.name, err)
	}
	d.stream.Close()
	select {
	case <-d.running:
		return nil
	case err := <-d.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// giveUpTimeout is how long a worker that is to give up may leave its stream
// unread.
const giveUpTimeout = time.Second

// destroyTimeout is what a worker gets to destroy its domain.
const destroyTimeout = time.Minute

// Destroy ends the worker, which destroys its domain.
func (d *Domain) Destroy() error {
	d.once.Do(func() {
		// The order matters: a worker that finds its stream ended looks at
		// the socket to know what to do.
		if c, ok := d.control.(*net.UnixConn); ok {
			c.CloseWrite()
		}
		// Within an epoch, or if the worker reads no more, the stream's end
		// alone has to do: then the domain is built to its end, and destroyed.
		d.stream.SetWriteDeadline(time.Now().Add(giveUpTimeout))
		d.stream.Write(savestream.FailingRecords())
		d.stream.Close()
	})
	select {
	case <-d.exited:
	case <-time.After(destroyTimeout):
		d.cmd.Process.Kill()
		<-d.exited
	}
	d.control.Close()
	left, err := d.r.Host.Lookup(d.name + suffix)
	if errors.Is(err, xen.ErrNoDomain) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.r.Host.Destroy(left.ID)
}

// Failed delivers the error of a worker that ended before Activate was through.
func (d *Domain) Failed() <-chan error { return d.failed }

var _ io.Writer = (*Domain)(nil)

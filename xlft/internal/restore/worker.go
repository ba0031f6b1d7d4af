package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/inbound"
	"xlft/xlft/internal/xen"
)

// File descriptors of a worker.
const (
	controlFD = 3 // a stream socket: lines of JSON both ways
	streamFD  = 4 // the checkpointed libxl stream
	lockFD    = 5 // a locked file: it says that the worker is alive
)

// order is what a receiver tells its worker: first what to restore, later to
// run it. The end of the socket before that means: destroy it.
type order struct {
	Config json.RawMessage `json:"config,omitempty"`
	Name   string          `json:"name,omitempty"`
	Run    bool            `json:"run,omitempty"`
}

// answer is what a worker tells its receiver.
type answer struct {
	Error   string `json:"error,omitempty"`
	Running bool   `json:"running,omitempty"`
	DomID   uint32 `json:"domid,omitempty"`
}

const suffix = domconf.ReplicaSuffix

// takenSuffix marks the name of a domain that was taken over while another one had
// its name.
const takenSuffix = "--taken-over"

// Work is the whole life of a worker process: it restores one domain. The
// replica runs only if the receiver said so; whatever else happens, it is
// destroyed. Runs is called once the domain runs.
func Work(log *zap.Logger, runs func(domain string)) error {
	control := os.NewFile(controlFD, "control")
	stream := os.NewFile(streamFD, "stream")
	// What libxl starts lives longer than this worker, and must not keep its lock.
	for fd := controlFD; fd <= lockFD; fd++ {
		unix.CloseOnExec(fd)
	}
	if control == nil || stream == nil {
		return errors.New("a restore worker is started by the receiver")
	}
	in, out := json.NewDecoder(control), json.NewEncoder(control)
	var o order
	if err := in.Decode(&o); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	fail := func(err error) error {
		out.Encode(answer{Error: err.Error()})
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return fail(err)
	}
	defer h.Close()
	room, err := keepRoom(xen.LibDir, libxlRoom)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP): // the file system can't
		log.Warn("a takeover fails if the disk is full then", zap.Error(err))
	case err != nil:
		return fail(err)
	}

	run, gaps := make(chan bool, 1), make(chan []gap, 1)
	go func() {
		var next order
		err := in.Decode(&next)
		room.Close() // the stream ends after the order, and then libxl writes
		goOn := err == nil && next.Run
		run <- goOn
		if goOn {
			gaps <- begin(log, o.Config) // while libxl completes the domain
		}
	}()
	domid, err := h.Restore(o.Config, o.Name+suffix, stream)
	if err != nil {
		select {
		case goOn := <-run:
			if !goOn { // told to give up, and did
				log.Info("replica given up", zap.String("domain", o.Name))
				return nil
			}
		default:
		}
		return fail(err)
	}
	if !<-run {
		if err := h.Destroy(domid); err != nil {
			return fail(err)
		}
		log.Info("replica destroyed", zap.String("domain", o.Name))
		return nil
	}
	name := o.Name
	if err := h.Rename(domid, o.Name+suffix, name); err != nil {
		// A name is a lesser thing than a running domain. But not that of a
		// replica: those are destroyed when nobody works on them.
		log.Error("rename", zap.Error(err))
		name = o.Name + takenSuffix
		if err := h.Rename(domid, o.Name+suffix, name); err != nil {
			return fail(fmt.Errorf("a domain that is to run can't be given a name: %w", err))
		}
	}
	// From here on the domain counts as one that ran, whatever becomes of it.
	if err := markRan(lockFD); err != nil {
		log.Error("note that the domain runs", zap.Error(err))
	}
	if err := h.Unpause(domid); err != nil {
		return fail(err)
	}
	out.Encode(answer{Running: true, DomID: domid})
	runs(name)
	// The work on the replica is done: another one may be made.
	if err := unix.Close(lockFD); err != nil {
		log.Error("give up the lock", zap.Error(err))
	}
	end(log, <-gaps, domid)
	return nil
}

// A gap is a network device of a domain that does not run yet.
type gap struct {
	*inbound.Gap
	devid int
}

// begin has what arrives for the domain kept until the domain runs, and announces its
// addresses. Failures are logged: the domain's own first packets tell the network too.
func begin(log *zap.Logger, config json.RawMessage) (gaps []gap) {
	c, err := domconf.Parse(config)
	if err != nil {
		log.Error("announce", zap.Error(err))
		return nil
	}
	for _, nic := range c.NICs {
		mac, err := net.ParseMAC(nic.MAC)
		if err == nil {
			var g *inbound.Gap
			g, err = inbound.Begin(nic.Bridge, mac)
			gaps = append(gaps, gap{g, nic.DevID})
		}
		if err != nil {
			log.Warn("announce the domain, and keep what arrives for it", zap.String("mac", nic.MAC), zap.Error(err))
		}
	}
	return gaps
}

// connectTimeout is how long the domain's drivers may take until its network works.
const connectTimeout = 15 * time.Second

// end gives the domain, which runs, what arrived for it, and announces it some more
// times.
func end(log *zap.Logger, gaps []gap, domid uint32) {
	var all sync.WaitGroup
	for _, g := range gaps {
		vif := fmt.Sprintf("vif%d.%d", domid, g.devid)
		all.Go(func() {
			sent, lost, err := g.End(vif, connectTimeout)
			if sent > 0 || lost > 0 || err != nil {
				log.Info("what arrived for the domain before it ran", zap.String("vif", vif), zap.Int("frames", sent), zap.Int("lost", lost), zap.Error(err))
			}
		})
		all.Go(func() {
			if err := g.Announce(); err != nil {
				log.Warn("announce", zap.String("vif", vif), zap.Error(err))
			}
		})
	}
	all.Wait()
}

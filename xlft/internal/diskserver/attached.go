package diskserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl/nbd"
	"xlft/xlft"
)

// A blockDevice is a disk as a block device of this host.
type blockDevice interface {
	Path() string
	Detach() error
}

// devices make exports block devices of this host.
type devices interface {
	attach(vdev string) (blockDevice, error)
	reattach(vdev string, index int) (blockDevice, error)
	disconnect(index int) error
	index(d blockDevice) int
}

// kernelDevices are those of the kernel's NBD client.
type kernelDevices struct{ exports *nbd.Server }

func (k kernelDevices) attach(vdev string) (blockDevice, error) {
	d, err := k.exports.Attach(vdev)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (k kernelDevices) reattach(vdev string, index int) (blockDevice, error) {
	d, err := k.exports.Reattach(vdev, index)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (k kernelDevices) disconnect(index int) error { return nbd.Disconnect(index) }

func (k kernelDevices) index(d blockDevice) int { return d.(*nbd.KernelDevice).Index }

// A lostDisk is a block device of this host whose server died, and that this
// process could not serve again until now. The kernel keeps its requests.
type lostDisk struct {
	attachment
	err error
}

// recordAttached writes AttachedFile. It is called with mu held.
func (s *Server) recordAttached() error {
	if s.AttachedFile == "" {
		return nil
	}
	at := map[string]attachment{}
	for vdev, d := range s.open {
		if d.kernel != nil {
			at[vdev] = attachment{s.devices.index(d.kernel), d.users, d.sector}
		}
	}
	for vdev, l := range s.lost {
		at[vdev] = l.attachment
	}
	b, err := json.Marshal(at)
	if err == nil {
		err = os.WriteFile(s.AttachedFile+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(s.AttachedFile+".new", s.AttachedFile)
	}
	if err != nil {
		return fmt.Errorf("write down what is attached: %w", err)
	}
	return nil
}

// Recover takes over from an earlier process that was killed: it serves the
// disks that were attached, and opens those with writes that were held back. A
// disk that does not come back does not keep the others down: it is tried again
// every second. Call Recover before Serve.
func (s *Server) Recover() error {
	b, err := os.ReadFile(s.AttachedFile)
	at := map[string]attachment{}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil {
		err = json.Unmarshal(b, &at)
	}
	if err != nil {
		return fmt.Errorf("read what was attached: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for vdev, a := range at {
		if err := s.reattach(vdev, a); err != nil {
			s.lost[vdev] = &lostDisk{a, err}
			s.Log.Error("a disk whose server died can't be served again; the domain's requests wait", zap.String("vdev", vdev), zap.String("device", nbd.DevicePath(a.Index)), zap.Error(err))
		}
	}
	if len(s.lost) > 0 {
		go s.findLost()
	}
	for vdev, conf := range s.Config.Disks {
		if !conf.Shared || s.open[vdev] != nil || s.lost[vdev] != nil {
			continue
		}
		left, err := s.held(vdev).Any()
		if err == nil && !left {
			continue
		}
		var d *disk
		if err == nil {
			d, err = s.openDisk(vdev, true, 0)
		}
		if err != nil {
			s.Log.Error("the writes that were held back of a disk stay held", zap.String("vdev", vdev), zap.Error(err))
			continue
		}
		d.unused = true
		go s.closeLater(d)
	}
	return nil
}

// reattach serves a block device again whose server died. It is called with mu
// held.
func (s *Server) reattach(vdev string, a attachment) error {
	d, err := s.openDisk(vdev, true, xlft.Sector(a.Sector)) // the domain sees these
	if err != nil {
		return err
	}
	if d.kernel, err = s.devices.reattach(vdev, a.Index); err != nil {
		s.closeDisk(d)
		return err
	}
	if a.Users != nil {
		d.users = a.Users
	}
	s.Log.Warn("serving a disk again whose server died", zap.String("vdev", vdev), zap.String("device", d.kernel.Path()))
	return nil
}

// findLostEvery is the interval at which lost disks are tried.
const findLostEvery = time.Second

// findLost tries the lost disks until there are none.
func (s *Server) findLost() {
	for {
		time.Sleep(findLostEvery)
		s.mu.Lock()
		if s.closed || len(s.lost) == 0 {
			s.mu.Unlock()
			return
		}
		for vdev, l := range s.lost {
			if l.err = s.reattach(vdev, l.attachment); l.err == nil {
				delete(s.lost, vdev)
			}
		}
		s.mu.Unlock()
	}
}

// giveUp removes the block device of a lost disk. It is called with mu held.
func (s *Server) giveUp(vdev string, l *lostDisk) error {
	if err := s.devices.disconnect(l.Index); err != nil {
		return err
	}
	delete(s.lost, vdev)
	err := s.recordAttached()
	s.endIfIdle()
	return err
}

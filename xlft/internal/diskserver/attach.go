package diskserver

import (
	"errors"
	"fmt"

	"go.uber.org/zap"

	"xlft/diskrepl/nbd"
)

// Attach makes a disk a block device of this host for a user, unless it is one,
// and returns the name of the device.
func (s *Server) Attach(vdev string, who User) (device string, err error) {
	if err := s.mayOpen(vdev); err != nil {
		return "", fmt.Errorf("attach %s: %w", vdev, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.lost[vdev]; l != nil {
		return "", fmt.Errorf("attach %s: it is %s, whose server died, and can't be served: %w", vdev, nbd.DevicePath(l.Index), l.err)
	}
	if d := s.open[vdev]; d != nil && d.socket && d.kernel == nil {
		return "", fmt.Errorf("attach %s: clients of the socket may write to it: \"xlft disk detach %s/%s\" ends that", vdev, s.Config.Name, vdev)
	}
	d, err := s.openDisk(vdev, false, 0)
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", vdev, err)
	}
	gone := s.Gone
	if gone == nil {
		gone = func(string) bool { return false }
	}
	if d.kernel != nil && len(d.users) == 0 {
		s.Log.Warn("an earlier server did not say who uses a disk", zap.String("vdev", vdev))
	}
	if err := d.users.admit(who, gone); err != nil {
		return "", fmt.Errorf("attach %s: %w", vdev, err)
	}
	if d.kernel == nil {
		d.kernel, err = s.devices.attach(vdev)
		if err != nil {
			s.closeDisk(d)
			return "", err
		}
		s.Log.Info("disk attached", zap.String("vdev", vdev), zap.String("device", d.kernel.Path()), zap.String("user", who.Name))
	}
	return d.kernel.Path(), s.recordAttached()
}

// Open serves a disk to NBD clients on the socket. While it is a block device
// they can only read it.
func (s *Server) Open(vdev string) error {
	if err := s.mayOpen(vdev); err != nil {
		return fmt.Errorf("open %s: %w", vdev, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.openDisk(vdev, false, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", vdev, err)
	}
	if d.socket {
		return nil
	}
	if err := s.clients.Add(&nbd.Export{Name: vdev, Description: s.Config.Name, Device: d.repl, ReadOnly: d.kernel != nil, Sector: d.sector}); err != nil {
		return fmt.Errorf("open %s: %w", vdev, err)
	}
	d.socket = true
	return nil
}

// Detach undoes a user's Attach, or as the Operator also Open, and closes the
// disk when nobody uses it. A disk that holds writes back stays open until the
// protector has decided on them.
func (s *Server) Detach(vdev, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.lost[vdev]; l != nil {
		delete(l.Users, name)
		if len(l.Users) > 0 {
			return s.recordAttached()
		}
		return s.giveUp(vdev, l)
	}
	d := s.open[vdev]
	if d == nil || d.unused {
		return nil
	}
	closed := d.socket && name == Operator
	if closed {
		d.socket = false
		s.clients.Remove(vdev)
	}
	_, used := d.users[name]
	delete(d.users, name)
	switch {
	case len(d.users) > 0 && !used && !closed && name == Operator:
		return fmt.Errorf("detach %s: it is in use by %v", vdev, d.users)
	case len(d.users) > 0, d.kernel != nil && !used && closed:
		return s.recordAttached()
	case d.kernel == nil && d.socket:
		return nil
	}
	return s.release(d)
}

// release takes a disk away that nobody uses any more. It is called with mu held.
func (s *Server) release(d *disk) error {
	if d.kernel != nil {
		if err := d.kernel.Detach(); err != nil {
			return err
		}
		s.Log.Info("disk detached", zap.String("vdev", d.vdev), zap.String("device", d.kernel.Path()))
	}
	if s.session != nil && s.session.has(d.vdev) {
		s.session.end(fmt.Errorf("disk %s was detached", d.vdev))
	}
	d.kernel = nil
	if d.socket {
		d.socket = false
		s.clients.Remove(d.vdev)
	}
	if h := d.holding(); h.On && !h.GivenUp {
		// The protector decides whether the writes go to the storage.
		s.Log.Warn("a disk without a user stays open for what it holds", zap.String("vdev", d.vdev), zap.Int64("bytes", h.Bytes))
		d.unused = true
		go s.closeLater(d)
		return s.recordAttached()
	}
	return s.finish(d)
}

// finish closes a disk that is not used any more. It is called with mu held.
func (s *Server) finish(d *disk) error {
	if d.dirty != nil {
		// Others may change it from here on.
		d.dirty.remove()
	}
	err := errors.Join(s.closeDisk(d), s.recordAttached())
	s.endIfIdle()
	return err
}

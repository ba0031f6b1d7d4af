package diskserver

import (
	"fmt"

	"go.uber.org/zap"

	"xlft/xlft"
)

// giveData returns the generation of a disk's data, which a copy on another host
// is about to get. That is recorded first.
func (s *Server) giveData(vdev string) (xlft.DataGen, error) {
	s.records.Lock()
	defer s.records.Unlock()
	r, err := s.Record(vdev)
	if err != nil {
		return r.Data, err
	}
	_, alone := s.alone.LoadAndDelete(vdev)
	if r.Data.Given && !alone {
		return r.Data, nil
	}
	if r.Data.ID == "" || r.Data.Given {
		r.Data = r.Data.Next()
	}
	r.Data.Given = true
	return r.Data, s.SaveRecord(vdev, r)
}

// newData makes a new generation of a disk's data, if a copy elsewhere has the
// present one: from here on the domain writes to this disk, and somebody may
// promote the other.
func (s *Server) newData(vdev string) error {
	s.records.Lock()
	defer s.records.Unlock()
	return s.newDataLocked(vdev)
}

// newDataLocked is newData with records held.
func (s *Server) newDataLocked(vdev string) error {
	r, err := s.Record(vdev)
	if err != nil || !r.Data.Given {
		return err
	}
	r.Data = r.Data.Next()
	if err := s.SaveRecord(vdev, r); err != nil {
		return fmt.Errorf("record that a copy elsewhere is older: %w", err)
	}
	return nil
}

// recordAlone is newData, unless giveData has seen to that meanwhile.
func (s *Server) recordAlone(vdev string) error {
	s.records.Lock()
	defer s.records.Unlock()
	if _, alone := s.alone.LoadAndDelete(vdev); !alone {
		return nil
	}
	return s.newDataLocked(vdev)
}

// runsAlone records that the domain runs on without a backup. The domain's output
// does not wait for that.
func (s *Server) runsAlone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for vdev, d := range s.open {
		if d.shared != nil {
			continue
		}
		s.alone.Store(vdev, true)
		s.recording.Go(func() {
			if err := s.recordAlone(vdev); err != nil {
				s.Log.Error("the record of a disk's data stays as it is", zap.String("vdev", vdev), zap.Error(err))
			}
		})
	}
}

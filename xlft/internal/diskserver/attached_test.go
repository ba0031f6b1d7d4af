package diskserver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/xlft/internal/disktest"
)

// fakeDevices are block devices of a host without a kernel.
type fakeDevices struct {
	next int
	gone []int
}

type fakeDevice int

func (d fakeDevice) Path() string { return fmt.Sprintf("/dev/nbd%d", d) }
func (fakeDevice) Detach() error  { return nil }

func (f *fakeDevices) attach(string) (blockDevice, error) {
	f.next++
	return fakeDevice(f.next), nil
}
func (f *fakeDevices) reattach(_ string, index int) (blockDevice, error) {
	return fakeDevice(index), nil
}
func (f *fakeDevices) disconnect(index int) error {
	f.gone = append(f.gone, index)
	return nil
}
func (f *fakeDevices) index(d blockDevice) int { return int(d.(fakeDevice)) }

// server returns a server with block devices, which nobody serves.
func (h hostDir) server(devices devices) *Server {
	s := New(h.Conf.For("web1"), zap.NewNop())
	h.records(s)
	s.AttachedFile = filepath.Join(h.Dir, "attached")
	s.HeldDir = filepath.Join(h.Dir, "held")
	s.devices = devices
	return s
}

// The server of two disks died, and one of them does not come back: the other is
// served, and the lost one as soon as it is there, or it is detached.
func TestRecoverWithoutOneDisk(t *testing.T) {
	for _, detach := range []bool{false, true} {
		h := newHostDir(t, 'a')
		h.AddDisk("xvdb", 'b', false)
		devs := &fakeDevices{}
		s := h.server(devs)
		for _, vdev := range []string{"xvda", "xvdb"} {
			if _, err := s.Attach(vdev, User{Name: Operator}); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		away := filepath.Join(h.Dir, "away")
		if err := os.Rename(filepath.Join(h.Dir, "xvda"), away); err != nil {
			t.Fatal(err)
		}
		s = h.server(devs)
		defer s.Close()
		if err := s.Recover(); err != nil {
			t.Fatal(err)
		}
		st := s.Status()
		if len(st) != 2 || st[0].Error == "" || st[1].Error != "" || st[1].Device == "" {
			t.Fatalf("%+v", st)
		}
		_, err := s.Attach("xvda", User{Name: Operator})
		disktest.Refused(t, "attach of the lost disk", err, "can't be served")
		if detach {
			if err := s.Detach("xvda", Operator); err != nil || len(devs.gone) != 1 || len(s.Status()) != 1 {
				t.Errorf("detach of the lost disk: %v, %v, %+v", err, devs.gone, s.Status())
			}
			if err := s.Detach("xvdb", Operator); err != nil {
				t.Error(err)
			}
			<-s.Idle()
			continue
		}
		// A successor knows of it too, though the file was written anew meanwhile.
		if _, err := s.Attach("xvdb", User{Name: Operator}); err != nil {
			t.Fatal(err)
		}
		s.Close()
		s = h.server(devs)
		defer s.Close()
		if err := s.Recover(); err != nil || len(s.Status()) != 2 {
			t.Fatalf("%v, %+v", err, s.Status())
		}
		if err := os.Rename(away, filepath.Join(h.Dir, "xvda")); err != nil {
			t.Fatal(err)
		}
		patience := time.After(20 * time.Second)
		for s.Status()[0].Error != "" {
			select {
			case <-patience:
				t.Fatalf("the disk is back and not served: %+v", s.Status())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// There is no room for the record of what the backup lacks: the domain has its
// disk all the same.
func TestNoRoomForDirtyRecord(t *testing.T) {
	h := newHostDir(t, 'a')
	s := h.server(&fakeDevices{})
	defer s.Close()
	s.DirtyDir = filepath.Join(h.Dir, "xvda") // a file: as good as a full file system
	if _, err := s.Attach("xvda", User{Name: Operator}); err != nil {
		t.Error(err)
	}
	if err := s.open["xvda"].repl.WriteAt([]byte("written"), 0, false); err != nil {
		t.Error(err)
	}
}

package diskserver

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"strings"
	"testing"

	"xlft/xlft/internal/disktest"
)

var (
	first  = User{"/local/domain/0/backend/vbd/5/51712", "/vm/one"}
	second = User{"/local/domain/0/backend/vbd/6/51712", "/vm/two"}
	moved  = User{"/local/domain/0/backend/vbd/7/51712", "/vm/one"}
)

// Who uses a disk: a second domain and clients of the socket that would write are
// refused, and nobody takes the disk away from another user.
func TestUsers(t *testing.T) {
	type step struct {
		do      func(s *Server) error
		refused string
		users   string // afterwards
	}
	attach := func(u User) func(*Server) error {
		return func(s *Server) error { _, err := s.Attach("xvda", u); return err }
	}
	detach := func(name string) func(*Server) error {
		return func(s *Server) error { return s.Detach("xvda", name) }
	}
	open := func(s *Server) error { return s.Open("xvda") }
	operator := attach(User{Name: Operator})
	for _, c := range []struct {
		what  string
		steps []step
	}{
		{"two domains", []step{
			{attach(first), "", first.Name},
			{attach(second), `"xl block-detach 5 51712"`, first.Name},
			{detach(second.Name), "", first.Name},
			{detach(first.Name), "", ""},
			{attach(second), "", second.Name},
		}},
		{"libxl repeats", []step{
			{attach(first), "", first.Name},
			{attach(first), "", first.Name},
			{detach(first.Name), "", ""},
			{detach(first.Name), "", ""},
		}},
		{"a migration to the same host", []step{
			{attach(first), "", first.Name},
			{attach(moved), "", first.Name + " " + moved.Name},
			{detach(first.Name), "", moved.Name},
			{detach(moved.Name), "", ""},
		}},
		{"an operator looks at a running domain's disk", []step{
			{attach(first), "", first.Name},
			{open, "", first.Name + " socket"},
			{detach(Operator), "", first.Name},
			{detach(Operator), "in use by " + first.Name, first.Name},
		}},
		{"an operator writes to the disk", []step{
			{open, "", "socket"},
			{attach(first), "xlft disk detach web1/xvda", "socket"},
			{detach(first.Name), "", "socket"},
			{detach(Operator), "", ""},
		}},
		{"an operator has it as a block device", []step{
			{operator, "", Operator},
			{attach(first), `"xlft disk detach"`, Operator},
			{detach(Operator), "", ""},
		}},
	} {
		h := newHostDir(t, 'a')
		s := h.server(&fakeDevices{})
		for i, st := range c.steps {
			if s.closed { // the last user went
				s = h.server(&fakeDevices{})
			}
			disktest.Refused(t, c.what, st.do(s), st.refused)
			now := ""
			for _, d := range s.Status() {
				now = strings.Join(d.Users, " ")
			}
			if now != st.users {
				t.Errorf("%s, step %d: used by %q, want %q", c.what, i, now, st.users)
			}
		}
		s.Close()
	}
}

// A domain that died without its hotplug script does not keep its disk.
func TestUserIsGone(t *testing.T) {
	s := newHostDir(t, 'a').server(&fakeDevices{})
	defer s.Close()
	s.Gone = func(name string) bool { return name == first.Name }
	for _, u := range []User{first, second} {
		if _, err := s.Attach("xvda", u); err != nil {
			t.Error(err)
		}
	}
	if err := s.Detach("xvda", first.Name); err != nil || len(s.Status()) != 1 {
		t.Errorf("the late detach of the one that is gone: %v, %+v", err, s.Status())
	}
}

// Users outlive their disk server. What an earlier version wrote down is
// understood: a user that is not known may detach.
func TestUsersOutliveTheServer(t *testing.T) {
	h := newHostDir(t, 'a')
	devs := &fakeDevices{}
	s := h.server(devs)
	if _, err := s.Attach("xvda", first); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = h.server(devs)
	if err := s.Recover(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Attach("xvda", second)
	disktest.Refused(t, "a second domain after a restart", err, first.Name)
	s.Close()

	b, _ := json.Marshal(map[string]int{"xvda": 3})
	if err := os.WriteFile(s.AttachedFile, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = h.server(devs)
	if err := s.Recover(); err != nil || s.Status()[0].Device != "/dev/nbd3" {
		t.Fatalf("%v, %+v", err, s.Status())
	}
	if err := s.Detach("xvda", first.Name); err != nil || len(s.Status()) != 0 {
		t.Errorf("%v, %+v", err, s.Status())
	}
}

// While a domain has its disk, clients of the socket get it read-only, and no
// export that nobody opened.
func TestSocketIsReadOnly(t *testing.T) {
	for _, c := range []struct {
		domain, opened bool
		served, rw     bool
	}{{true, false, false, false}, {true, true, true, false}, {false, true, true, true}} {
		h := newHostDir(t, 'a')
		s, stop := h.serve(nil)
		s.devices = &fakeDevices{}
		if c.domain {
			if _, err := s.Attach("xvda", first); err != nil {
				t.Fatal(err)
			}
		}
		if c.opened {
			if err := s.Open("xvda"); err != nil {
				t.Fatal(err)
			}
		}
		nc, err := net.Dial("unix", ClientSocket(h.Dir, "web1"))
		if err != nil {
			t.Fatal(err)
		}
		// NBD: the server's greeting of 18 bytes, then EXPORT_NAME xvda without
		// zeroes; the answer has the size in 8 bytes and the flags in 2, of which 1<<1
		// is read-only.
		b := make([]byte, 18)
		if _, err := nc.Read(b); err != nil {
			t.Fatal(err)
		}
		nc.Write(append(append([]byte{0, 0, 0, 3}, "IHAVEOPT"...), append([]byte{0, 0, 0, 1, 0, 0, 0, 4}, "xvda"...)...))
		var got bytes.Buffer
		for got.Len() < 10 {
			n, err := nc.Read(b[:10-got.Len()])
			if err != nil {
				break
			}
			got.Write(b[:n])
		}
		if served := got.Len() == 10; served != c.served || served && (got.Bytes()[9]&2 == 0) != c.rw {
			t.Errorf("%+v: answered %x", c, got.Bytes())
		}
		nc.Close()
		stop()
	}
}

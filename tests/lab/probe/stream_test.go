package probe_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"xlft/tests/lab/probe"
)

// serve answers adds as the guest does, n of them.
func serve(conn net.Conn, n int) {
	defer conn.Close()
	var s probe.State
	for in := bufio.NewScanner(conn); n > 0 && in.Scan(); n-- {
		var v uint64
		fmt.Sscanf(in.Text(), "add %d", &v)
		s = probe.State{Count: s.Count + 1, Sum: probe.Fold(s.Sum, v)}
		fmt.Fprintln(conn, s.Count, s.Sum)
	}
}

func TestStream(t *testing.T) {
	ours, theirs := net.Pipe()
	go serve(theirs, 1<<30)
	s := probe.NewClient(ours).Stream(1, 8)
	for {
		if _, n, _ := s.Counts(); n >= 100 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	replies, err := s.Stop(time.Second)
	sent, received, _ := s.Counts()
	if err != nil || sent != received || int(received) != len(replies) {
		t.Fatalf("sent %d, received %d, %d replies, %v", sent, received, len(replies), err)
	}
	if n, err := probe.Judge(probe.State{}, replies[len(replies)-1].Says, replies); n != 0 {
		t.Errorf("%d untrue replies: %v", n, err)
	}
}

func TestStreamBreaks(t *testing.T) {
	ours, theirs := net.Pipe()
	go serve(theirs, 5)
	s := probe.NewClient(ours).Stream(1, 3)
	for {
		if _, _, err := s.Counts(); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	replies, err := s.Stop(time.Second)
	if len(replies) != 5 || !(errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe)) {
		t.Errorf("%d replies, %v", len(replies), err)
	}
}

func TestJudge(t *testing.T) {
	var chain []probe.Reply
	var s probe.State
	for n := range uint64(10) {
		s = probe.State{Count: s.Count + 1, Sum: probe.Fold(s.Sum, n)}
		chain = append(chain, probe.Reply{N: n, Says: s})
	}
	odd := func(odd bool) (half []probe.Reply) {
		for _, r := range chain {
			if r.N%2 == 1 == odd {
				half = append(half, r)
			}
		}
		return half
	}
	if n, err := probe.Judge(probe.State{}, s, odd(true), odd(false)); n != 0 || err != nil {
		t.Errorf("two clients: %d untrue, %v", n, err)
	}
	for name, c := range map[string]struct {
		end  probe.State
		edit func(r []probe.Reply)
		want int
	}{
		"taken back":   {chain[6].Says, func([]probe.Reply) {}, 3},
		"said twice":   {s, func(r []probe.Reply) { r[4].Says = r[3].Says }, 1},
		"another past": {s, func(r []probe.Reply) { r[5].Says.Sum++ }, 2}, // it, and the one that follows from its rival
		"other end":    {probe.State{Count: s.Count, Sum: 1}, func([]probe.Reply) {}, 1},
	} {
		r := slices.Clone(chain)
		c.edit(r)
		if n, err := probe.Judge(probe.State{}, c.end, r); n != c.want || !errors.Is(err, probe.ErrUntrue) {
			t.Errorf("%s: %d untrue, want %d; %v", name, n, c.want, err)
		}
	}
}

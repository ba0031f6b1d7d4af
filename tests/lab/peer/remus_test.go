//go:build lab

// Package peer documents what stock "xl remus" does where xlft keeps a promise, on the same two hosts. The tests of
// scenario beside it: TestOutputHeld, TestTakeoverLinux.
package peer

import (
	"context"
	"fmt"
	"testing"
	"time"

	"xlft/tests/lab"
)

func TestMain(m *testing.M) { lab.MainBench(m) }

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// With its network buffering, xl remus lets a guest's output out when it has written the checkpoint into its connection;
// whether the backup has got the checkpoint, it does not know. And a backup that hears nothing any more waits on: after a
// silent death the guest runs nowhere.
func TestRemus(t *testing.T) {
	lab.Long(t)
	const patience = 4 * time.Minute
	l := lab.Start(t)
	g := lab.NewGuest("web1", 10)
	check(t, l.A.CreateGuest(within(t, patience), g))
	// Room for some checkpoints in the connection, as a long way between the hosts needs. (By default a connection here has
	// room for half of one.)
	l.A.Must(t, "sysctl", "-q", "-w", "net.core.wmem_max=67108864", "net.ipv4.tcp_wmem=4096 67108864 67108864")
	r, err := lab.StartRemus(within(t, 3*patience), l.A, l.B, g.Name, lab.RemusXL, 200)
	check(t, err)
	check(t, r.AwaitCheckpoints(within(t, patience)))
	client, err := l.DialGuest(within(t, patience), g)
	check(t, err)
	stream := client.Paced(0, 1, 50*time.Millisecond)
	answered := func(after time.Time) (n int, last time.Duration) {
		for _, p := range stream.Replies() {
			if p.At.After(after) {
				n++
				last = p.At.Sub(after)
			}
		}
		return n, last
	}
	begun := time.Now()
	check(t, lab.Await(within(t, patience), func() error {
		if n, _ := answered(begun); n < 5 {
			return fmt.Errorf("%d answers: %v", n, err)
		}
		return nil
	}))

	// The hosts don't reach each other any more; the guest's client reaches both. What had reached B by then may leave within
	// two of its checkpoints.
	check(t, l.SplitHosts())
	split := time.Now().Add(2 * time.Second)
	<-time.After(20 * time.Second)
	n, last := answered(split)
	taken, err := r.Checkpoints()
	t.Logf("%d answers from 2 s after the split on, the last one %v after that; %d checkpoints (%v)", n, last.Round(time.Millisecond), taken, err)
	if n == 0 {
		t.Error("xl remus held its output: docs/performance.md says otherwise")
	}

	l.A.Kill()
	check(t, l.JoinHosts())
	died := time.Now()
	for time.Since(died) < time.Minute {
		all, err := l.B.Domains(within(t, patience))
		check(t, err)
		for _, d := range all {
			if d.Name == g.Name {
				t.Errorf("xl remus runs the guest %v after the death: docs/performance.md says otherwise", time.Since(died).Round(time.Second))
				return
			}
		}
		<-time.After(5 * time.Second)
	}
	t.Logf("a minute after the silent death of its host the guest runs nowhere")
}

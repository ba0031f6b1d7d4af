package main

import (
	"net"
	"testing"
	"time"

	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/steward"
)

// A protector that stands still in a terminal has its domain, and keeps the steward from no
// other.
func TestStoppedInTerminal(t *testing.T) {
	dir := t.TempDir()
	if inTerminal(t.Context(), dir, "web1") {
		t.Error("there is none")
	}
	l, err := net.Listen("unix", control.Socket(dir, "web1"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begun, had := time.Now(), make(chan bool, 1)
	go func() { had <- inTerminal(t.Context(), dir, "web1") }()
	select {
	case h := <-had:
		if !h || time.Since(begun) < overview.Patience/2 {
			t.Errorf("%v after %v", h, time.Since(begun))
		}
	case <-time.After(3 * overview.Patience):
		t.Error("the steward waits for it")
	}
}

// Where nobody stopped anything nothing is stopped, also of a run that can't be told from others.
func TestNobodyStopped(t *testing.T) {
	s := &stewarded{config: func() *config.Config { return &config.Config{RunDir: t.TempDir()} }}
	for _, run := range []string{"", "boot/7"} {
		if stopped, _ := s.Stopped(steward.Domain{Name: "web1", Instance: run}); stopped {
			t.Errorf("the run %q counts as stopped", run)
		}
	}
}

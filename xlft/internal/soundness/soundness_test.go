package soundness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// said is a command whose answers are given.
func said(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "health")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAsk(t *testing.T) {
	for _, c := range []struct {
		script string
		sound  bool
		why    string
		err    string
	}{
		{"exit 0", true, "", ""},
		{"echo all is well", true, "all is well", ""},
		{"echo 7 corrected errors; echo in DIMM 3 >&2; exit 100", false, "7 corrected errors in DIMM 3", ""},
		{"echo Traceback >&2; exit 1", false, "Traceback", "exit status 1: Traceback"}, // a script that is broken
		{"echo no such sensor >&2; exit 2", false, "no such sensor", "exit status 2: no such sensor"},
		{"kill -KILL $$", false, "", "signal: killed"},
		{"sleep 1000 & exit 100", false, "", ""}, // what it leaves behind holds nobody up
	} {
		why, sound, err := ask(t.Context(), said(t, c.script))
		if sound != c.sound || why != c.why || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v, %v", c.script, why, sound, err)
		}
	}
	if _, sound, err := ask(t.Context(), "/nonexistent"); sound || err == nil {
		t.Errorf("no command: %v, %v", sound, err)
	}
}

// A host is emptied once the command has said twice in a row that it is not sound, once; a
// command that says nothing changes nothing.
func TestWatch(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	drained, full := 0, false
	w := &Watch{Log: zap.New(core), Note: filepath.Join(t.TempDir(), "note"), Emptied: func() bool { return true }, Empty: func(context.Context) error {
		if drained++; full {
			return errors.New("web1 is not protected")
		}
		return nil
	}}
	sound, hot, broken := said(t, "exit 0"), said(t, "echo hot; exit 100"), said(t, "exit 3")
	// One path whose content changes: another command begins anew.
	command := filepath.Join(t.TempDir(), "health")
	after := func(want int, commands ...string) {
		t.Helper()
		for _, c := range commands {
			if err := errors.Join(os.RemoveAll(command), os.Link(c, command)); err != nil {
				t.Fatal(err)
			}
			w.look(t.Context(), command)
		}
		if drained != want {
			t.Errorf("drained %d times, want %d", drained, want)
		}
	}
	after(0, sound, hot, sound, hot, sound)
	after(0, hot, broken)
	after(1, hot)
	after(1, hot, broken, hot)
	full = true
	after(2, sound, hot, hot) // sound in between: it is another time
	after(3, hot)
	full = false
	after(4, hot)
	after(4, hot)
	after(4, sound, hot)
	w.look(t.Context(), hot) // another command
	after(4)
	if n := logs.FilterMessageSnippet("can't be told").Len(); n != 1 {
		t.Errorf("%d complaints about the command, want one until it works again", n)
	}
}

// The program that comes with xlft, on counts as the kernel has them.
func TestEDAC(t *testing.T) {
	edac, marks := t.TempDir(), filepath.Join(t.TempDir(), "run", "marks")
	t.Setenv("EDAC", edac)
	t.Setenv("EDAC_MARKS", marks)
	program, err := filepath.Abs("../../../scripts/health-edac")
	if err != nil {
		t.Fatal(err)
	}
	counts := func(controller string, ue, ce string) {
		t.Helper()
		for name, n := range map[string]string{"ue_count": ue, "ce_count": ce} {
			if err := errors.Join(os.MkdirAll(filepath.Join(edac, controller), 0o755), os.WriteFile(filepath.Join(edac, controller, name), []byte(n+"\n"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	is := func(what string, sound bool, want string) {
		t.Helper()
		why, got, err := ask(t.Context(), program)
		if got != sound || !strings.Contains(why, want) || err != nil {
			t.Errorf("%s: %v, %q, %v", what, got, why, err)
		}
	}
	if why, _, err := ask(t.Context(), program); err == nil || !strings.Contains(why, "load the EDAC driver") {
		t.Errorf("no counts: %q, %v", why, err)
	}
	counts("mc0", "0", "5000")
	is("old corrected errors", true, "")
	counts("mc1", "0", "90")
	is("some more", true, "")
	counts("mc1", "0", "101")
	is("too many", false, "101 corrected memory errors within a day, 100 are allowed")
	t.Setenv("EDAC_MAX_CORRECTED", "200")
	is("more are allowed", true, "")
	if err := os.WriteFile(marks, []byte("-1 0\n"), 0o644); err != nil { // of another day
		t.Fatal(err)
	}
	is("a new day", true, "")
	counts("mc1", "1", "101")
	is("an uncorrected one", false, "1 uncorrected memory errors")
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/store"
	"xlft/xlft/primary"
)

// A domain that a dead protector left held is not left so for an operator's word: whoever
// is to be kept from protecting it is the one who would let its output out.
func TestStopOfLeft(t *testing.T) {
	boot := protector.BootID()
	if boot == "" {
		t.Skip("this host's boot has no name")
	}
	dir := t.TempDir()
	conf, state, runDir := filepath.Join(dir, "xlft.toml"), filepath.Join(dir, "state"), filepath.Join(dir, "run")
	if err := os.Mkdir(runDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+runDir+"\"\nstate_dir = \""+state+"\"\n[arbiter]\ntype = \"manual\"\n[default]\nprotect = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Dir(state).Save("web1", xlft.Ownership{Generation: 3, Role: xlft.HostPrimary, Peer: "beta", Exposed: true, Instance: boot + "/7"}); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(conf)
	if err != nil {
		t.Fatal(err)
	}
	// But its successor may begin, though its backup can't be reached.
	for domain, want := range map[string]bool{"web1": true, "web2": false} {
		if d, left := leftWith(c, fmt.Errorf("check: %w", &problemsError{domain: domain})); d != domain || left != want {
			t.Errorf("%s: %q, %v", domain, d, left)
		}
	}
	out, complaint := run(t, "--config", conf, "ft-stop", "web1")
	if out != "" || !strings.Contains(complaint, "before it was decided") {
		t.Errorf("%q, %q", out, complaint)
	}
	if stopped, _ := protector.Stopped(runDir, "web1", boot+"/7"); stopped {
		t.Error("the steward leaves it alone")
	}
}

// Whoever ran a protection, its end by an operator is noted; any other end is not.
func TestNoteStop(t *testing.T) {
	dir := t.TempDir()
	stopped := func() bool {
		stopped, _ := protector.Stopped(dir, "web1", "boot/7")
		return stopped
	}
	for _, o := range []primary.Outcome{primary.Failed, primary.SwitchedOver, ""} {
		if err := noteStop(dir, "web1", "boot/7", o); err != nil || stopped() {
			t.Errorf("%q: %v", o, err)
		}
	}
	if err := noteStop(dir, "web1", "boot/7", primary.Stopped); err != nil || !stopped() {
		t.Errorf("%v", err)
	}
}

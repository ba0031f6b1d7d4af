package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/steward"
	"xlft/xlft/primary"
)

// ft-drain moves what is protected, then ends the replicas, and the mark stays as long as it
// is to.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	conf, state, runDir := filepath.Join(dir, "xlft.toml"), filepath.Join(dir, "state"), filepath.Join(dir, "run")
	if err := os.Mkdir(runDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+runDir+"\"\nstate_dir = \""+state+"\"\n[arbiter]\ntype = \"manual\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(conf)
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	serve := func(name string, answers map[string]func() (any, error)) {
		l, err := control.Listen(control.Socket(runDir, name))
		if err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		for pattern, answer := range answers {
			control.Handle(mux, pattern, func(*http.Request) (any, error) {
				if strings.HasPrefix(pattern, "POST") {
					calls = append(calls, name+" "+pattern)
					if !drained(c) {
						t.Errorf("%s %s, and new replicas are still taken", name, pattern)
					}
				}
				return answer()
			})
		}
		srv := &http.Server{Handler: mux}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
	}
	protector := func(name string, st primary.State, o primary.Outcome) {
		serve(name, map[string]func() (any, error){
			"GET /status": func() (any, error) {
				return primary.Status{Domain: name, Peer: "beta", State: st, Protected: st == primary.Protected}, nil
			},
			"POST /failover": func() (any, error) { return protector.Ended{Outcome: o}, nil },
		})
	}
	protector("web1", primary.Protected, primary.SwitchedOver)
	protector("web2", primary.Syncing, primary.SwitchedOver)
	protector("web3", primary.Protected, primary.SwitchedOver)
	serve(control.Receiver, map[string]func() (any, error){
		"GET /replicas": func() (any, error) { return []backup.Status{}, nil }, "GET /conflicts": func() (any, error) { return []backup.Conflict{}, nil },
		"GET /unprotected": func() (any, error) { return []steward.Status{}, nil },
		"POST /evict":      func() (any, error) { return []backup.Status{}, nil },
	})
	out, _ := run(t, "--config", conf, "ft-drain") // what stays is up to Xen
	if want := []string{"web1 POST /failover", "web3 POST /failover", control.Receiver + " POST /evict"}; strings.Join(calls, ",") != strings.Join(want, ",") {
		t.Errorf("it called %q, want %q", calls, want)
	}
	if !strings.Contains(out, "web1: moves to beta\nweb1: runs on its backup now, unprotected\n") {
		t.Errorf("ft-drain prints\n%s", out)
	}
	if lasting, _ := drainMarks(c); !strings.HasPrefix(lasting, state) {
		t.Errorf("the mark is %s: it does not survive a reboot", lasting)
	}
	if _, complaint := run(t, "--config", conf, "ft-list"); !strings.Contains(complaint, "This host is drained") {
		t.Errorf("ft-list complains %q", complaint)
	}
	run(t, "--config", conf, "ft-undrain")
	if drained(c) {
		t.Error("ft-undrain does not end it")
	}
	run(t, "--config", conf, "ft-drain", "--until-boot")
	if lasting, untilBoot := drainMarks(c); !drained(c) || exists(lasting) || !exists(untilBoot) {
		t.Error("--until-boot leaves a mark that survives a boot, or none")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xlft/xlft/internal/control"
	"xlft/xlft/primary"
)

func TestWait(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "xlft.toml")
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+dir+"\"\nstate_dir = \""+dir+"\"\n[arbiter]\ntype = \"manual\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(control.Socket(dir, "web1"))
	if err != nil {
		t.Fatal(err)
	}
	var looks atomic.Int32
	mux := http.NewServeMux()
	control.Handle(mux, "GET /status", func(*http.Request) (any, error) {
		if looks.Add(1) < 3 {
			return primary.Status{Domain: "web1", State: primary.Syncing}, nil
		}
		return primary.Status{Domain: "web1", State: primary.Protected, Protected: true}, nil
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	defer srv.Close()
	for _, c := range []struct{ args, complaint string }{
		{"web1 protected", ""},
		{"web1 unprotected --timeout 700ms", "ft-wait: web1: after 700ms it did not come to that; it is protected\n"},
		{"web2 protected --timeout 1ms -q", "ft-wait: web2: after 1ms it did not come to that; it is "},
		{"web2 unprotected", ""}, // nothing is known of it
		{"web1 happy", `ft-wait: no state to wait for is called "happy": protected, unprotected, syncing`},
	} {
		begun := time.Now()
		_, complaint := run(t, append([]string{"--config", conf, "ft-wait"}, strings.Fields(c.args)...)...)
		if !strings.HasPrefix(complaint, c.complaint) || c.complaint == "" && complaint != "" || time.Since(begun) > 10*time.Second {
			t.Errorf("ft-wait %s complains %q after %v, want %q", c.args, complaint, time.Since(begun), c.complaint)
		}
	}
	if n := looks.Load(); n < 4 {
		t.Errorf("it looked %d times", n)
	}
}

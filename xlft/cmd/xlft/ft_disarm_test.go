package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/xlft/internal/protector"
)

func TestDisarmRefuses(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "xlft.toml")
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+dir+"\"\nstate_dir = \""+dir+"\"\n[arbiter]\ntype = \"manual\"\n[domain.web2]\nprotect = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"", `required flag(s) "for" not set`},
		{"--for 0s", "between 1s and 168h0m0s"},
		{"--for 1h", "no domain with protect = true is protected from this host, or waits"},
		{"--for 1h web1", `web1 has no protect = true: nobody would protect it again. "xl ft-stop web1"`},
		{"--for 1h web2 web1", "web1 has no protect = true"},
	} {
		if out, said := run(t, append([]string{"--config", conf, "ft-disarm"}, strings.Fields(c.args)...)...); out != "" || !strings.Contains(said, c.want) {
			t.Errorf("%s: %q, %q", c.args, out, said)
		}
	}
}

// The end is noted before the protection ends, and not left behind if that fails; of an operator
// who is cut off nobody knows whether it fails.
func TestDisarm(t *testing.T) {
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	for _, c := range []struct {
		name  string
		cut   bool
		fails bool
		until time.Time
	}{
		{"it ends", false, false, at},
		{"it fails", false, true, time.Time{}},
		{"the operator is cut off", true, true, at},
	} {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		failure := errors.New("no such domain")
		err := disarmOne(ctx, dir, "web1", at, func() error {
			if c.cut {
				cancel()
			}
			if c.fails {
				return failure
			}
			return protector.MarkStopped(dir, "web1", "boot/7")
		})
		if errors.Is(err, failure) != c.fails {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := protector.MarkStopped(dir, "web1", "boot/7"); err != nil {
			t.Fatal(err)
		}
		if stopped, until := protector.Stopped(dir, "web1", "boot/7"); !stopped || !until.Equal(c.until) {
			t.Errorf("%s: stopped until %v, want %v", c.name, until, c.until)
		}
		cancel()
	}
}

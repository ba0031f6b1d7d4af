package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run runs the program's root command.
func run(t *testing.T, args ...string) (out, complaint string) {
	t.Helper()
	out, complaint, _ = runStatus(t, args...)
	return out, complaint
}

// runStatus is run, and returns the exit status.
func runStatus(t *testing.T, args ...string) (out, complaint string, status int) {
	t.Helper()
	var b, e bytes.Buffer
	c := root()
	c.SetArgs(args)
	c.SetOut(&b)
	c.SetErr(&e)
	if err := c.ExecuteContext(t.Context()); err != nil {
		complain(&e, err)
		status = exitStatus(err)
	}
	return b.String(), e.String(), status
}

func TestComplaints(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("[host]\nnme = \"a\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", bad, "check-config"}, "check-config: " + bad + ":2: host.nme: unknown key\n  The reference configuration has every key: /usr/local/share/doc/xlft/xlft.toml.\n"},
		{[]string{"--config", bad, "ft-start", "web1"}, "ft-start: " + bad + ":2: host.nme: unknown key\n  The reference"},
		{[]string{"--config", dir + "/none", "ft-list"}, "ft-list: " + dir + "/none: no such file or directory\n  Copy the reference configuration"},
		{[]string{"ft-start"}, "accepts 1 arg(s), received 0"},
		{[]string{"inspect", dir + "/none"}, "inspect: open " + dir + "/none: no such file or directory"},
		{[]string{"inspect", bad}, "inspect: " + bad + ": savestream: "},
		{[]string{"keygen", "--show", "--dir", dir + "/none"}, "keygen: load identity from " + dir + "/none"},
	} {
		if _, got := run(t, c.args...); !strings.HasPrefix(got, c.want) {
			t.Errorf("%v says\n%s\nwant\n%s", c.args, got, c.want)
		}
	}
}

func TestKeygen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	made, complaint := run(t, "keygen", "--dir", dir, "--name", "alpha")
	if !strings.HasPrefix(made, "sha256:") || complaint != "" {
		t.Fatalf("%q %q", made, complaint)
	}
	if shown, _ := run(t, "keygen", "--dir", dir, "--show"); shown != made {
		t.Errorf("shown %q, made %q", shown, made)
	}
	if _, complaint := run(t, "keygen", "--dir", dir); !strings.Contains(complaint, "identity exists already") || !strings.Contains(complaint, "--force") {
		t.Errorf("a second one: %q", complaint)
	}
	st, err := os.Stat(filepath.Join(dir, "host.key"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", st, err)
	}
}

// documented are commands that have a help text and a man page.
var documented = []string{"ft-start", "ft-stop", "ft-disarm", "ft-status", "ft-list", "ft-check", "ft-failover", "ft-resolve", "ft-set", "ft-drain", "ft-undrain", "ft-wait", "keygen", "inspect", "receive", "check-config", "events", "metrics", "disk-verify"}

// Every command says what it does.
func TestHelp(t *testing.T) {
	for _, c := range documented {
		words := strings.Split(strings.Replace(c, "disk-", "disk ", 1), " ")
		if out, _ := run(t, append(words, "--help")...); !strings.Contains(out, "Usage:\n  xlft "+strings.Join(words, " ")) {
			t.Errorf("%s --help prints\n%s", c, out)
		}
	}
}

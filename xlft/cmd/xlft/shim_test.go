package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shim returns a command that runs scripts/xl with a fake xl and a fake xlft,
// which print their name, arguments and standard input.
func shim(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	for name, body := range map[string]string{
		"xl":   "#!/bin/sh\nif [ \"$1\" = trap ]; then trap 'echo got TERM; exit 7' TERM; echo ready; while :; do sleep 0.05; done; fi\necho xl \"$#\" \"$@\"; cat; exit 3\n",
		"xlft": "#!/bin/sh\necho xlft \"$#\" \"$@\"; cat; exit 5\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("../../../scripts/xl", args...)
	cmd.Env = append(os.Environ(), "XLFT_REAL_XL="+filepath.Join(dir, "xl"), "XLFT_BINARY="+filepath.Join(dir, "xlft"))
	cmd.Stdin = strings.NewReader("input\n")
	return cmd
}

func TestShim(t *testing.T) {
	for _, c := range []struct {
		args []string
		out  string
		code int
	}{
		{[]string{"list", "-l", "a b", ""}, "xl 4 list -l a b \ninput\n", 3},
		{nil, "xl 0\ninput\n", 3},
		{[]string{"ft-start", "--backup", "beta", "web 1"}, "xlft 4 ft-start --backup beta web 1\ninput\n", 5},
		{[]string{"help", "list"}, "xl 2 help list\ninput\n", 3},
		{[]string{"help", "ft-start"}, "xlft 2 help ft-start\ninput\n", 5},
		{[]string{"-v", "list"}, "xl 2 -v list\ninput\n", 3},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			cmd := shim(t, c.args...)
			out, _ := cmd.Output()
			if string(out) != c.out || cmd.ProcessState.ExitCode() != c.code {
				t.Errorf("printed %q, status %d, want %q, %d", out, cmd.ProcessState.ExitCode(), c.out, c.code)
			}
		})
	}
}

func TestShimHelpListsBoth(t *testing.T) {
	cmd := shim(t, "help")
	out, _ := cmd.Output()
	for _, want := range []string{"xl 1 help", "ft-start", "ft-stop", "ft-status", "ft-list", "ft-check", "ft-failover"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if got := cmd.ProcessState.ExitCode(); got != 3 {
		t.Errorf("status %d, want xl's 3", got)
	}
}

// The shim becomes xl, so that a signal reaches it.
func TestShimSignals(t *testing.T) {
	cmd := shim(t, "trap")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	guard := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer guard.Stop()
	buf := make([]byte, 64)
	n, err := out.Read(buf)
	if err != nil || string(buf[:n]) != "ready\n" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	n, _ = out.Read(buf)
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); string(buf[:n]) != "got TERM\n" || got != 7 {
		t.Errorf("%q, status %d, want 7", buf[:n], got)
	}
}

// run runs the program's root command.
func run(t *testing.T, args ...string) (out, complaint string) {
	t.Helper()
	var b, e bytes.Buffer
	c := root()
	c.SetArgs(args)
	c.SetOut(&b)
	c.SetErr(&e)
	if err := c.ExecuteContext(t.Context()); err != nil {
		complain(&e, err)
	}
	return b.String(), e.String()
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

// Every command has a man page and says what it does.
func TestHelp(t *testing.T) {
	dir := t.TempDir()
	if _, complaint := run(t, "man", dir); complaint != "" {
		t.Fatal(complaint)
	}
	for _, c := range []string{"ft-start", "ft-stop", "ft-status", "ft-list", "ft-check", "ft-failover", "keygen", "inspect", "receive", "check-config"} {
		if _, err := os.Stat(filepath.Join(dir, "xlft-"+c+".8")); err != nil {
			t.Error(err)
		}
		if out, _ := run(t, c, "--help"); !strings.Contains(out, "Usage:\n  xlft "+c) {
			t.Errorf("%s --help prints\n%s", c, out)
		}
	}
}

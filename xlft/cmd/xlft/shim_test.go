package main

import (
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
		"xlft": "#!/bin/sh\nif [ \"$1\" = guard ]; then [ \"$3\" = web1 ] && echo no >&2 && exit 1; [ \"$3\" = odd ] && exit 2; exit 0; fi\necho xlft \"$#\" \"$@\"; cat; exit 5\n",
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
		{[]string{"save", "web1", "f"}, "", 1},
		{[]string{"save", "free", "f"}, "xl 3 save free f\ninput\n", 3},
		{[]string{"block-attach", "web1", "x"}, "", 1},
		{[]string{"migrate", "odd", "host"}, "xl 3 migrate odd host\ninput\n", 3}, // the guard itself fails
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
	for _, want := range []string{"xl 1 help", "ft-start", "ft-stop", "ft-disarm", "ft-status", "ft-list", "ft-check", "ft-failover", "ft-set", "ft-resolve", "ft-drain", "ft-undrain", "ft-wait"} {
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

// Bash takes words apart at "=", and wants what follows it.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	fake := filepath.Join(t.TempDir(), "xlft")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nfor last; do :; done\necho \"$*\" >&2\ncase $last in mode=*) printf 'mode=event\\nmode=strict\\n';; *) printf 'mode=\\nepoch_max=\\nweb1\\n';; esac\necho :4\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for words, want := range map[string]string{
		"xl ft-set w":             "web1",
		"xl ft-set web1 m":        "mode=",
		"xl ft-set web1 mode = ":  "event strict",
		"xl ft-set web1 mode = s": "strict",
		"xlft ft-set web1 e":      "epoch_max=",
	} {
		f := strings.Split(words, " ")
		script := "source ../../../scripts/completion.bash; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); if [ $1 = xl ]; then _xl_ft_complete; else _xlft_complete; fi; echo \"${COMPREPLY[@]}\""
		cmd := exec.Command(bash, append([]string{"-c", script, "bash"}, f...)...)
		cmd.Env = append(os.Environ(), "XLFT_BINARY="+fake)
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%q: %q, %v, want %q", words, out, err, want)
		}
	}
}

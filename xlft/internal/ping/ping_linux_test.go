package ping

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inNamespace runs a test in a process with a network of its own, in which loopback is up
// and answers as echo says.
func inNamespace(t *testing.T, echo string) bool {
	t.Helper()
	if os.Getenv("PING_NAMESPACE") != "" {
		for _, args := range [][]string{{"ip", "link", "set", "lo", "up"}, {"ip", "addr", "add", "192.0.2.1/32", "dev", "lo"}, {"ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad"}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
		for _, path := range []string{"/proc/sys/net/ipv4/icmp_echo_ignore_all", "/proc/sys/net/ipv6/icmp/echo_ignore_all"} {
			if err := os.WriteFile(path, []byte(echo), 0); err != nil {
				t.Fatal(err)
			}
		}
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "PING_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

var (
	four  = netip.MustParseAddr("192.0.2.1")
	six   = netip.MustParseAddr("2001:db8::1")
	other = netip.MustParseAddr("192.0.2.2") // has no route
)

func TestAnswers(t *testing.T) {
	if !inNamespace(t, "0") {
		return
	}
	for _, targets := range [][]netip.Addr{{four}, {six}, {other, four}, {four, six}} {
		begun := time.Now()
		if err := Any(t.Context(), targets, 20*time.Second); err != nil {
			t.Errorf("%v: %v", targets, err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("%v: it took %v to be told", targets, took)
		}
	}
}

// Our own requests come back on loopback too: they are no answers.
func TestSilent(t *testing.T) {
	if !inNamespace(t, "1") {
		return
	}
	err := Any(t.Context(), []netip.Addr{four, six}, 500*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "within 500ms from 192.0.2.1, 2001:db8::1") {
		t.Errorf("%v, want both named", err)
	}
	err = Any(t.Context(), []netip.Addr{other}, 300*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("%v, want why it can't be asked", err)
	}
}

// One answer is enough: those that are silent keep nobody waiting.
func TestAnyDoesNotWaitForTheSilent(t *testing.T) {
	const limit = 20 * time.Second // which another target's silence would take
	begun := time.Now()
	if err := Any(t.Context(), []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.77")}, limit); err != nil {
		t.Skip(err) // no CAP_NET_RAW
	}
	if d := time.Since(begun); d > limit/2 {
		t.Errorf("the first answer came at once, and Any returned after %v", d)
	}
}

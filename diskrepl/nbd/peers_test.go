package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/diskrepl/blockfile"
)

// peer returns the path of a program that somebody else wrote. Without it the
// test is skipped, unless XLFT_PEERS_REQUIRED is set.
func peer(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("XLFT_PEERS_REQUIRED") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), peer(t, name), args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func uri(socket, export string) string { return "nbd+unix:///" + export + "?socket=" + socket }

// eachWay runs a test on a file and on a block device, through the page cache
// and past it.
func eachWay(t *testing.T, n int64, f func(t *testing.T, d *blockfile.File, socket string)) {
	for _, on := range []struct {
		name string
		open func(testing.TB, int64, bool) *blockfile.File
	}{{"file", open}, {"block device", openLoop}} {
		for _, direct := range []bool{false, true} {
			t.Run(on.name+map[bool]string{false: " cached", true: " direct"}[direct], func(t *testing.T) {
				d := on.open(t, n, direct)
				f(t, d, serve(t, d))
			})
		}
	}
}

// openLoop returns a block device of n bytes.
func openLoop(t testing.TB, n int64, direct bool) *blockfile.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a block device for the test needs root")
	}
	name := filepath.Join(t.TempDir(), "backing")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, n)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", name).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	d, err := blockfile.Open(loop, direct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func noise(t testing.TB, n int) (name string, b []byte) {
	t.Helper()
	b = make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	clear(b[n/4 : n/2]) // a hole
	name = filepath.Join(t.TempDir(), "noise")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, b
}

func contents(t testing.TB, d *blockfile.File) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNbdinfo(t *testing.T) {
	socket := serve(t, open(t, 64<<20, false))
	out := run(t, "nbdinfo", uri(socket, "disk"))
	for _, want := range []string{"export-size: 67108864", "a test", "can_flush: true", "can_fua: true", "can_multi_conn: true",
		"can_trim: true", "can_zero: true", "is_read_only: false", "block_size_preferred: 4096", "block_size_maximum: 33554432", "structured packets"} {
		if !strings.Contains(out, want) {
			t.Errorf("nbdinfo does not say %q:\n%s", want, out)
		}
	}
	if out := run(t, "nbdinfo", "--list", "nbd+unix:///?socket="+socket); !strings.Contains(out, `export="disk"`) || !strings.Contains(out, `export="ro"`) {
		t.Errorf("list:\n%s", out)
	}
}

func TestQemuIO(t *testing.T) {
	eachWay(t, 64<<20, func(t *testing.T, d *blockfile.File, socket string) {
		out := run(t, "qemu-io", "-f", "raw", uri(socket, "disk"), "-c", "write -P 0xaa 0 64k", "-c", "write -f -P 0xbb 512 512",
			"-c", "aio_write -P 0xcc 1M 3M", "-c", "aio_write -P 0xdd 8M 1M", "-c", "aio_flush",
			"-c", "read -P 0xbb 512 512", "-c", "read -P 0xaa 1024 3072", "-c", "write -z 4096 8192", "-c", "write -z -u 1M 4096",
			"-c", "read -P 0 4096 8192", "-c", "read -P 0 1M 4096", "-c", "read -P 0xcc 1028k 2M", "-c", "discard 8M 512k", "-c", "flush",
			"-c", "read -P 0xdd 8704k 512k")
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Error(out)
		}
	})
}

func TestQemuImg(t *testing.T) {
	eachWay(t, 16<<20, func(t *testing.T, d *blockfile.File, socket string) {
		name, b := noise(t, 16<<20)
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", name, uri(socket, "disk"))
		if !bytes.Equal(contents(t, d), b) {
			t.Error("the disk is not what qemu-img wrote")
		}
		if out := run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", name, uri(socket, "disk")); !strings.Contains(out, "identical") {
			t.Error(out)
		}
	})
}

func TestNbdcopy(t *testing.T) {
	eachWay(t, 24<<20, func(t *testing.T, d *blockfile.File, socket string) {
		name, b := noise(t, 24<<20)
		run(t, "nbdcopy", "--connections=4", "--flush", name, uri(socket, "disk"))
		if !bytes.Equal(contents(t, d), b) {
			t.Error("the disk is not what nbdcopy wrote")
		}
		back := name + ".back"
		run(t, "nbdcopy", "--connections=4", uri(socket, "disk"), back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, b) {
			t.Errorf("nbdcopy read something else (%v)", err)
		}
	})
}

// libnbd checks what it is answered; with its strict mode off it also sends
// what a client should not.
func TestLibnbd(t *testing.T) {
	socket := serve(t, open(t, 1<<20, false))
	// The distribution's Python has the distribution's libnbd.
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import nbd").CombinedOutput(); err != nil {
		if os.Getenv("XLFT_PEERS_REQUIRED") != "" {
			t.Fatalf("%v: %s", err, out)
		}
		t.Skipf("no libnbd for Python: %v", err)
	}
	script := fmt.Sprintf(`
import errno, nbd
h = nbd.NBD()
def expect(want, f):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == want, (e, want)
    else:
        assert False, "no error, want %%d" %% want
h.connect_uri(%q)
assert h.get_structured_replies_negotiated()
h.pwrite(b"x" * 4096, 4096, nbd.CMD_FLAG_FUA)
seen = []
def chunk(buf, off, status, err):
    seen.append((off, len(buf), status))
assert h.pread_structured(8192, 0, chunk) == b"\0" * 4096 + b"x" * 4096
assert sum(n for _, n, _ in seen) == 8192, seen
assert h.pread_structured(512, 4096, chunk, nbd.CMD_FLAG_DF) == b"x" * 512
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
h.trim(65536, 0)
h.flush()
cookies = [h.aio_pread(nbd.Buffer(65536), i * 65536) for i in range(16)] + [h.aio_flush()]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
h.set_strict_mode(0)
expect(errno.EINVAL, lambda: h.pread(1024, 2**20 - 512))
expect(errno.ENOSPC, lambda: h.pwrite(b"x" * 1024, 2**20 - 512))
expect(errno.EINVAL, lambda: h.trim(1024, 2**20))
expect(errno.EINVAL, lambda: h.pread(512, 0, 1 << 10))
assert h.pread(1, 0) == b"\0"
h.shutdown()
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(%q)
assert h.is_read_only()
expect(errno.EPERM, lambda: h.pwrite(b"x" * 512, 0))
h.shutdown()
`, uri(socket, "disk"), uri(socket, "ro"))
	run(t, python, "-c", script)
}

// fio verifies what it wrote, by its checksums.
func TestFio(t *testing.T) {
	eachWay(t, 32<<20, func(t *testing.T, d *blockfile.File, socket string) {
		out := run(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+uri(socket, "disk"), "--rw=randrw", "--bsrange=512-128k", "--iodepth=32",
			"--size=32m", "--io_size=48m", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--verify_state_save=0", "--fsync=100", "--output-format=terse")
		if !strings.Contains(out, ";") {
			t.Error(out)
		}
	})
}

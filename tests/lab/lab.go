//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Lab is two hosts and the network around them, and a third host for those who ask for it.
type Lab struct {
	A, B *Host
	C    *Host // nil but after Third

	net       *network
	img       image
	run       *entry
	published string // file by which other processes find the lab
}

// Prepare makes this machine ready: it installs the packages that are missing, and builds the hosts' image and their
// snapshots where the cache has none. It needs root. The first time takes some minutes; logf reports progress.
func Prepare(ctx context.Context, logf func(format string, args ...any)) error {
	l, err := Open(ctx, logf)
	if err != nil {
		return err
	}
	return l.Close()
}

// Open prepares the lab and returns it with both hosts down. Tests call [Start] instead.
func Open(ctx context.Context, logf func(format string, args ...any)) (*Lab, error) {
	return open(ctx, false, logf)
}

func open(ctx context.Context, more bool, logf func(format string, args ...any)) (l *Lab, err error) {
	if err := installTools(ctx, logf); err != nil {
		return nil, err
	}
	c, err := openCache()
	if err != nil {
		return nil, err
	}
	l = new(Lab)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("lab: %w", err), l.Close())
			l = nil
		}
	}()
	if l.run, err = c.newRun(); err != nil {
		return l, err
	}
	if l.img, err = prepareImage(ctx, c, more, logf); err != nil {
		return l, err
	}
	ns, err := newNamespace()
	if err != nil {
		return l, err
	}
	if l.net, err = newNetwork(ns); err != nil {
		return l, err
	}
	for i, h := range []**Host{&l.A, &l.B} {
		if *h, err = l.newHost(hostSpecs[i]); err != nil {
			return l, err
		}
	}
	if err := emptySAN(sanOf(l.A.dir)); err != nil {
		return l, err
	}
	err = l.each(func(h *Host) error {
		var err error
		h.snap, err = prepareSnapshot(ctx, c, l.net, l.img, h.hostSpec, logf)
		return err
	})
	if err != nil {
		return l, err
	}
	for _, kind := range []string{"base", "tools", "dom0", "hostA", "hostB", "hostC"} {
		if err := c.prune(kind, 2); err != nil {
			return l, err
		}
	}
	return l, nil
}

// newHost returns a host that is down, with an empty directory.
func (l *Lab) newHost(spec hostSpec) (*Host, error) {
	h := &Host{hostSpec: spec, net: l.net, img: l.img, dir: filepath.Join(l.run.dir, spec.name)}
	return h, os.Mkdir(h.dir, 0o755)
}

// Third gives the lab a third host, C, as the first two are after Reset. The next Reset takes it away.
func (l *Lab) Third(ctx context.Context, logf func(format string, args ...any)) error {
	h, err := l.newHost(hostSpecs[2])
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	c, err := openCache()
	if err == nil {
		h.snap, err = prepareSnapshot(ctx, c, l.net, l.img, h.hostSpec, logf)
	}
	l.C = h
	if err == nil {
		err = h.Revive(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("lab: %w", err), l.dropThird())
	}
	return nil
}

func (l *Lab) dropThird() error {
	if l.C == nil {
		return nil
	}
	h := l.C
	l.C = nil
	h.Kill()
	h.snap.release()
	return os.RemoveAll(h.dir)
}

// Close kills the hosts and removes all traces of the lab but its cache.
func (l *Lab) Close() error {
	var err error
	if l.published != "" {
		err = os.Remove(l.published)
	}
	for _, h := range l.Hosts() {
		h.Kill()
		h.snap.release()
	}
	if l.net != nil {
		l.net.close()
		l.net.ns.close()
	}
	if l.run != nil {
		err = errors.Join(err, l.run.discard())
	}
	l.img.release()
	return err
}

// Hosts returns both hosts, and the third if there is one.
func (l *Lab) Hosts() []*Host {
	var all []*Host
	for _, h := range []*Host{l.A, l.B, l.C} {
		if h != nil {
			all = append(all, h)
		}
	}
	return all
}

// Peer returns the other host of the first two.
func (l *Lab) Peer(h *Host) *Host {
	if h == l.A {
		return l.B
	}
	return l.A
}

// Reset puts the lab in its first state: network whole, both hosts as they are in their snapshots.
func (l *Lab) Reset(ctx context.Context) error {
	if err := l.net.mend(); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := l.dropThird(); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for _, h := range l.Hosts() {
		h.Kill()
	}
	if err := emptySAN(sanOf(l.A.dir)); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return l.each(func(h *Host) error { return h.Revive(ctx) })
}

// each does f for all hosts at the same time.
func (l *Lab) each(f func(*Host) error) error {
	errs := make([]error, len(l.Hosts()))
	var wg sync.WaitGroup
	for i, h := range l.Hosts() {
		wg.Go(func() { errs[i] = f(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// SplitHosts keeps the hosts from each other on the LAN; both still reach the test process, as they would reach a
// third place by another path.
func (l *Lab) SplitHosts() error { return l.setSplit(true) }

// JoinHosts undoes SplitHosts.
func (l *Lab) JoinHosts() error { return l.setSplit(false) }

// OpenSecond lets the hosts reach each other on the network on which otherwise only the test process reaches them.
func (l *Lab) OpenSecond() error { return l.setSecond(true) }

// CloseSecond undoes OpenSecond.
func (l *Lab) CloseSecond() error { return l.setSecond(false) }

func (l *Lab) setSecond(open bool) error {
	return l.each(func(h *Host) error { return l.net.isolate(h.mgmtTap, !open) })
}

func (l *Lab) setSplit(on bool) error {
	return l.each(func(h *Host) error { return l.net.isolate(h.lanTap, on) })
}

// Dial connects from the test process's place on the LAN. The address must not need a name server.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.net.dial(ctx, network, addr)
}

// Listen listens at the test process's place on the LAN.
func (l *Lab) Listen(ctx context.Context, network, addr string) (ln net.Listener, err error) {
	enter := l.net.ns.enter(func() { ln, err = new(net.ListenConfig).Listen(ctx, network, addr) })
	if enter != nil {
		return nil, enter
	}
	return ln, err
}

// ListenPacket is Listen for datagrams.
func (l *Lab) ListenPacket(ctx context.Context, network, addr string) (pc net.PacketConn, err error) {
	enter := l.net.ns.enter(func() { pc, err = new(net.ListenConfig).ListenPacket(ctx, network, addr) })
	if enter != nil {
		return nil, enter
	}
	return pc, err
}

// Exec starts a program of this machine at the test process's place on the LAN. It is killed when the lab is closed.
func (l *Lab) Exec(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := l.net.ns.do(cmd.Start); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// The lab of this test binary.
var shared struct {
	turn sync.Mutex // held by the test that has the hosts

	bench bool // the hosts have what OpenBench adds

	mu  sync.Mutex // guards the fields below: the process may end at any time
	lab *Lab
	err error // why there is no lab
}

// Main runs the tests of a package that uses the lab: call it from TestMain. It takes the lab down at the end, also
// after Ctrl-C.
func Main(m *testing.M) {
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stopped
		closeShared()
		os.Exit(130)
	}()
	code := m.Run()
	closeShared()
	os.Exit(code)
}

// MainBench is Main, and the hosts have what [OpenBench] adds.
func MainBench(m *testing.M) {
	shared.bench = true
	Main(m)
}

// openShared opens the lab the first time. It runs in the turn of one test, without the lock, so that the process can
// end during a build: QEMU and builds end with the process by themselves.
func openShared() (*Lab, error) {
	shared.mu.Lock()
	l, err := shared.lab, shared.err
	shared.mu.Unlock()
	if l != nil || err != nil {
		return l, err
	}
	l, err = open(context.Background(), shared.bench, log.Printf)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.lab, shared.err = l, err
	return l, err
}

func closeShared() {
	shared.mu.Lock()
	l := shared.lab
	shared.lab, shared.err = nil, errors.New("the tests are over")
	shared.mu.Unlock()
	if l != nil {
		if err := l.Close(); err != nil {
			log.Print("lab: ", err)
		}
	}
}

// Start gives the test both hosts in their first state: booted, no guests, nothing of xlft on them, network whole. The
// first Start of a test binary prepares the lab. Tests that call Start run one after the other. Where the lab can't
// run, the test is skipped with the reason; XLFT_LAB_REQUIRED=1 makes that a failure.
func Start(t testing.TB) *Lab {
	t.Helper()
	l := take(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := l.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	return l
}

// Long skips a test that the test command has no time for; XLFT_LAB_LONG=1 runs it.
func Long(t testing.TB) {
	t.Helper()
	if !HasTime() {
		t.Skip("takes long: XLFT_LAB_LONG=1 runs it")
	}
}

// HasTime reports whether tests that take long are wanted.
func HasTime() bool { return os.Getenv("XLFT_LAB_LONG") != "" }

// Continue gives the test both hosts as the test before it left them.
func Continue(t testing.TB) *Lab {
	t.Helper()
	return take(t)
}

// take waits for the test's turn and returns the lab of this test binary.
func take(t testing.TB) *Lab {
	t.Helper()
	shared.turn.Lock()
	t.Cleanup(shared.turn.Unlock)
	l, err := openShared()
	switch {
	case errors.Is(err, ErrUnable) && os.Getenv("XLFT_LAB_REQUIRED") == "":
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.report(t)
		}
	})
	return l
}

// report logs the end of the hosts' consoles, and saves the consoles in XLFT_LAB_LOGS if that is set.
func (l *Lab) report(t testing.TB) {
	for _, h := range l.Hosts() {
		if body, err := os.ReadFile(h.Console()); err == nil {
			t.Logf("console of host %s:\n%s", h.name, tail(string(body), 15))
		}
		if dir := os.Getenv("XLFT_LAB_LOGS"); dir != "" {
			if err := h.keep(filepath.Join(dir, t.Name())); err != nil {
				t.Log(err)
			}
		}
	}
}

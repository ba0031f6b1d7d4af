//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/probe"
)

func TestMain(m *testing.M) { lab.Main(m) }

// within returns a context for one step of a test.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bootGuest(t *testing.T, l *lab.Lab, h *lab.Host, g lab.Guest) *probe.Client {
	t.Helper()
	begin := time.Now()
	check(t, h.CreateGuest(within(t, time.Minute), g))
	created := time.Since(begin)
	c, err := l.DialGuest(within(t, time.Minute), g)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = c.Get()
	check(t, err)
	t.Logf("guest %s on %s: created after %v, answers after %v", g.Name, h.Name(), created, time.Since(begin))
	return c
}

func reaches(t *testing.T, l *lab.Lab, addr netip.Addr) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := l.Dial(ctx, "tcp", netip.AddrPortFrom(addr, 5000).String())
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func TestLabHosts(t *testing.T) {
	begin := time.Now()
	l := lab.Start(t)
	t.Logf("both hosts after %v", time.Since(begin))
	for _, h := range l.Hosts() {
		begin := time.Now()
		domains, err := h.Domains(t.Context())
		check(t, err)
		t.Logf("xl list on %s took %v", h.Name(), time.Since(begin))
		if len(domains) != 1 || domains[0].Name != "Domain-0" {
			t.Errorf("host %s has %+v, want dom0 alone", h.Name(), domains)
		}
		if got, want := strings.TrimSpace(h.Must(t, "hostname")), h.Name(); got != want {
			t.Errorf("hostname %q, want %q", got, want)
		}
		h.Must(t, "ping", "-c1", "-W5", l.Peer(h).Name())
		h.Must(t, "ping", "-c1", "-W5", l.Peer(h).IPv4().String())
		h.Must(t, "ping", "-c1", "-W5", l.Peer(h).IPv6().String())
		var unix int64
		_, err = fmt.Sscan(h.Must(t, "date", "+%s"), &unix)
		check(t, err)
		if off := time.Since(time.Unix(unix, 0)).Abs(); off > 5*time.Second {
			t.Errorf("clock of host %s is off by %v", h.Name(), off)
		}
	}
}

func TestLabCommands(t *testing.T) {
	l := lab.Start(t)
	ctx := within(t, time.Minute)
	_, err := l.A.Run(ctx, "sh", "-c", "echo why >&2; exit 4")
	if got, want := fmt.Sprint(err), "host A: sh -c echo why >&2; exit 4: exit status 4: why"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	body := []byte(strings.Repeat("0123456789\n", 300_000))
	check(t, l.A.WriteFile(ctx, "/tmp/dir/file", body, 0o751))
	got, err := l.A.ReadFile(ctx, "/tmp/dir/file")
	check(t, err)
	if string(got) != string(body) {
		t.Errorf("read %d bytes back, want the %d written", len(got), len(body))
	}
	if got, want := strings.TrimSpace(l.A.Must(t, "stat", "-c%a", "/tmp/dir/file")), "751"; got != want {
		t.Errorf("mode %s, want %s", got, want)
	}
	p, err := l.B.Start(ctx, "sh", "-c", "echo ready; exec sleep 1000")
	check(t, err)
	check(t, p.AwaitOutput(ctx, "ready"))
	l.B.Kill()
	if err := p.Wait(); err == nil {
		t.Error("a command on a killed host ended well")
	}
}

// The libraries that a program linked with libxl and libxc needs.
func TestLabLibraries(t *testing.T) {
	l := lab.Start(t)
	out := l.A.Must(t, "ldconfig", "-p")
	for _, lib := range []string{"libxenlight", "libxlutil", "libxenctrl", "libxenguest", "libxenstore", "libxenevtchn",
		"libxentoollog", "libyajl"} {
		if !strings.Contains(out, lib+".so") {
			t.Errorf("no %s on the host", lib)
		}
	}
}

func TestLabKillAndRevive(t *testing.T) {
	l := lab.Start(t)
	l.A.Must(t, "touch", "/root/mark")
	l.A.Kill()
	if reaches(t, l, l.A.IPv4()) {
		t.Error("a killed host answers")
	}
	l.B.Must(t, "true")
	begin := time.Now()
	check(t, l.A.Revive(within(t, time.Minute)))
	t.Logf("revived after %v", time.Since(begin))
	if !reaches(t, l, l.A.IPv4()) {
		t.Error("a revived host does not answer")
	}
	if out := l.A.Must(t, "ls", "/root"); out != "" {
		t.Errorf("a revived host remembers %q", out)
	}
}

func TestLabBootFromOwnDisk(t *testing.T) {
	lab.Long(t)
	l := lab.Start(t)
	l.A.Must(t, "sh", "-c", "touch /root/mark && sync")
	l.A.Kill()
	begin := time.Now()
	check(t, l.A.Boot(within(t, 5*time.Minute)))
	t.Logf("booted after %v", time.Since(begin))
	if got, want := l.A.Must(t, "ls", "/root"), "mark\n"; got != want {
		t.Errorf("the host has %q in /root after a boot, want %q", got, want)
	}
	l.A.Must(t, "xl", "list")
}

func TestLabPause(t *testing.T) {
	l := lab.Start(t)
	check(t, l.A.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := l.A.Run(ctx, "true"); err == nil {
		t.Error("a paused host runs commands")
	}
	check(t, l.A.Resume())
	l.A.Must(t, "true")
}

func TestLabCuts(t *testing.T) {
	l := lab.Start(t)
	peers := func() bool {
		_, err := l.A.Run(within(t, 30*time.Second), "ping", "-c1", "-W2", l.B.IPv4().String())
		return err == nil
	}
	for _, c := range []struct {
		name                       string
		cut, mend                  func() error
		reachesA, reachesB, joined bool // while cut
	}{
		{"A's LAN", l.A.CutLAN, l.A.RestoreLAN, false, true, false},
		{"host from host", l.SplitHosts, l.JoinHosts, true, true, false},
	} {
		check(t, c.cut())
		if got := reaches(t, l, l.A.IPv4()); got != c.reachesA {
			t.Errorf("%s cut: A reached %v, want %v", c.name, got, c.reachesA)
		}
		if got := reaches(t, l, l.B.IPv6()); got != c.reachesB {
			t.Errorf("%s cut: B reached %v, want %v", c.name, got, c.reachesB)
		}
		if got := peers(); got != c.joined {
			t.Errorf("%s cut: A reaches B %v, want %v", c.name, got, c.joined)
		}
		check(t, c.mend())
		// The hosts take a moment to ask again for neighbours that did not answer.
		check(t, lab.Await(within(t, 20*time.Second), func() error {
			if a, b, ab := reaches(t, l, l.A.IPv4()), reaches(t, l, l.B.IPv6()), peers(); !a || !b || !ab {
				return fmt.Errorf("%s mended: A reached %v, B reached %v, A reaches B %v", c.name, a, b, ab)
			}
			return nil
		}))
	}
}

func TestLabListen(t *testing.T) {
	l := lab.Start(t)
	for _, addr := range []netip.Addr{lab.ClientIP4, lab.ClientIP6} {
		ln, err := l.Listen(t.Context(), "tcp", netip.AddrPortFrom(addr, 9000).String())
		check(t, err)
		defer ln.Close()
		p, err := l.B.Start(within(t, 30*time.Second), "nc", "-N", addr.String(), "9000")
		check(t, err)
		_, err = p.Write([]byte("hello"))
		check(t, err)
		check(t, p.CloseInput())
		conn, err := ln.Accept()
		check(t, err)
		defer conn.Close()
		check(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		got, err := io.ReadAll(conn)
		check(t, err)
		if string(got) != "hello" {
			t.Errorf("%v: got %q from the host, want %q", addr, got, "hello")
		}
	}
}

func TestLabGuest(t *testing.T) {
	l := lab.Start(t)
	g := lab.NewGuest("web1", 10)
	c := bootGuest(t, l, l.A, g)
	var want probe.State
	for n := uint64(1); n <= 5; n++ {
		want = probe.State{Count: n, Sum: probe.Fold(want.Sum, n*n)}
		got, err := c.Add(n * n)
		check(t, err)
		if got != want {
			t.Fatalf("state %+v after %d, want %+v", got, n, want)
		}
	}
	c6, err := l.DialGuest6(within(t, 10*time.Second), g)
	check(t, err)
	defer c6.Close()
	got, err := c6.Get()
	check(t, err)
	if got != want {
		t.Errorf("by IPv6: state %+v, want %+v", got, want)
	}
	check(t, c.Dirty(500, 1000))
	_, err = c.Stall()
	check(t, err)
	console, err := l.A.GuestConsole(t.Context(), g.Name)
	check(t, err)
	if !strings.Contains(console, "workload: ready") {
		t.Errorf("the guest's console shows\n%s", console)
	}

	id, err := l.A.Domid(t.Context(), g.Name)
	check(t, err)
	begin := time.Now()
	l.A.Must(t, "xl", "save", g.Name, "/root/web1")
	saved := time.Since(begin)
	l.A.Must(t, "xl", "restore", "/root/web1")
	t.Logf("save took %v, restore %v", saved, time.Since(begin)-saved)
	check(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	got, err = c.Get() // the connection lives on
	check(t, err)
	if got != want {
		t.Errorf("after save and restore: state %+v, want %+v", got, want)
	}
	if now, err := l.A.Domid(t.Context(), g.Name); err != nil || now == id {
		t.Errorf("after save and restore: domid %d, %v, want another than %d", now, err, id)
	}
	l.A.Must(t, "xl", "shutdown", "-w", g.Name)
}

func TestLabGuestDisk(t *testing.T) {
	l := lab.Start(t)
	l.A.Must(t, "truncate", "-s", "16M", "/root/disk.img")
	g := lab.NewGuest("web1", 10)
	g.Disks = []string{"format=raw,vdev=xvda,access=rw,target=/root/disk.img"}
	c := bootGuest(t, l, l.A, g)
	check(t, c.WriteBlock(7, 1234567))
	n, err := c.ReadBlock(7)
	check(t, err)
	if n != 1234567 {
		t.Errorf("block 7 holds %d, want 1234567", n)
	}
	out := l.A.Must(t, "od", "-An", "-tu8", "-j28672", "-N8", "/root/disk.img")
	if got, want := strings.TrimSpace(out), "1234567"; got != want {
		t.Errorf("the host's file holds %s in block 7, want %s", got, want)
	}
}

func TestLabCapture(t *testing.T) {
	l := lab.Start(t)
	guests := map[*lab.Host]lab.Guest{l.A: lab.NewGuest("onA", 10), l.B: lab.NewGuest("onB", 11)}
	capture, err := l.Capture(lab.Probes)
	check(t, err)
	for h, g := range guests {
		g.Chatter = 20
		check(t, h.CreateGuest(within(t, time.Minute), g))
	}
	enough := func() error {
		seen := map[*lab.Host]map[probe.Proto]int{l.A: {}, l.B: {}}
		for _, f := range capture.Frames() {
			p, _ := f.Probe()
			seen[f.Host][p.Proto]++
		}
		for _, counts := range seen {
			for _, proto := range probe.Protos {
				if counts[proto] < 20 {
					return fmt.Errorf("%v probes: %d", proto, counts[proto])
				}
			}
		}
		return nil
	}
	check(t, lab.Await(within(t, time.Minute), enough))
	frames, err := capture.Stop()
	check(t, err)
	last := map[*lab.Host]uint64{}
	for _, f := range frames {
		if got, want := f.Src().String(), guests[f.Host].MAC; got != want {
			t.Fatalf("a frame from %s came out of host %s, whose guest is %s", got, f.Host.Name(), want)
		}
		p, _ := f.Probe()
		if p.Seq != last[f.Host]+1 {
			t.Errorf("host %s: probe %d after %d", f.Host.Name(), p.Seq, last[f.Host])
		}
		last[f.Host] = p.Seq
	}
}

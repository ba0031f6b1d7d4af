//go:build lab

package xtfguest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/xtf/model"
	"xlft/tests/xtf/xtfguest"
)

func TestMain(m *testing.M) { lab.Main(m) }

const (
	soon     = 30 * time.Second
	patience = 2 * time.Minute
)

// What the counters of these tests are started with, apart from what a test adds.
const pages, seed = 512, 1

func counter(name string, options ...string) xtfguest.Guest {
	return xtfguest.Guest{Name: name, Test: "counter", Options: options}
}

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

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// judge checks a counter's checksums, at ascending counts, against the model, which it returns.
func judge(t *testing.T, what string, states ...xtfguest.State) *model.Counter {
	t.Helper()
	m := model.New(seed, pages)
	for _, s := range states {
		m.To(s.Count)
		if m.Sum != s.Sum {
			t.Errorf("%s: %v, want sum %016x", what, s, m.Sum)
		}
	}
	return m
}

// judgeAll makes a counter check all its pages, and checks its report.
func judgeAll(t *testing.T, d *xtfguest.Domain) xtfguest.Report {
	t.Helper()
	r, err := d.Check(within(t, soon))
	check(t, err)
	if m := judge(t, "check of all pages", r.State); m.Digest() != r.Digest {
		t.Errorf("digest of all pages at %v is %016x, want %016x", r.State, r.Digest, m.Digest())
	}
	return r
}

func create(t *testing.T, g xtfguest.Guest, h *lab.Host) *xtfguest.Domain {
	t.Helper()
	begun := time.Now()
	d, err := g.Create(within(t, patience), h)
	check(t, err)
	created := time.Since(begun)
	check(t, d.AwaitConsole(within(t, soon), "--- Xen Test Framework ---"))
	t.Logf("%s on %s: created after %v, on its console after %v", g.Name, h.Name(), round(created), round(time.Since(begun)))
	return d
}

// Both guests come up, do their work and say SUCCESS, in the words of the Xen Test Framework.
func TestGuestsBoot(t *testing.T) {
	l := lab.Start(t)
	for _, g := range []xtfguest.Guest{
		counter("short", "rate=0", "count=2000"),
		{Name: "dirty", Test: "dirty", Options: []string{"rate=5000", "count=5000"}},
	} {
		g.Config = "on_poweroff = \"preserve\"\n" // so that the console stays to be read
		begun := time.Now()
		d := create(t, g, l.A)
		check(t, d.AwaitConsole(within(t, soon), "Test result: "))
		out, err := d.Console(t.Context())
		check(t, err)
		t.Logf("result after %v:\n%s", round(time.Since(begun)), out)
		for _, want := range []string{
			"--- Xen Test Framework ---\nEnvironment: PVH 64bit (Long mode 4 levels)\n",
			"\nTest result: SUCCESS\n",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("console of %s lacks %q", g.Name, want)
			}
		}
		l.A.Must(t, "xl", "destroy", g.Name)
	}
}

// A counter lives through a suspend that is cancelled and through one that is not, and then obeys a shutdown.
func TestSaveRestore(t *testing.T) {
	l := lab.Start(t)
	g := counter("c1")
	d := create(t, g, l.A)
	before := judgeAll(t, d)

	begun := time.Now()
	l.A.Must(t, "xl", "save", "-c", g.Name, "/root/c1")
	t.Logf("save -c took %v", round(time.Since(begun)))
	if r := judgeAll(t, d); r.Count < before.Count {
		t.Errorf("count %d after a cancelled suspend, %d before", r.Count, before.Count)
	}

	begun = time.Now()
	l.A.Must(t, "xl", "save", g.Name, "/root/c1")
	saved := time.Since(begun)
	l.A.Must(t, "xl", "restore", "/root/c1")
	t.Logf("save took %v, restore %v", round(saved), round(time.Since(begun)-saved))
	d, err := xtfguest.Find(t.Context(), l.A, g.Name)
	check(t, err)
	judgeAll(t, d)
	out, err := d.Console(t.Context())
	check(t, err)
	wakes := xtfguest.Wakes(out)
	if len(wakes) != 2 || wakes[0].Restored || !wakes[1].Restored {
		t.Fatalf("wakes are %+v, want one resumed and one restored", wakes)
	}
	judge(t, "at the wakes", wakes[0].State, wakes[1].State)

	check(t, lab.Await(within(t, soon), func() error { // it goes on publishing
		s, err := d.State(t.Context())
		switch {
		case err != nil:
			return err
		case s.Count <= wakes[1].Count:
			return fmt.Errorf("published %v, was restored at %v", s, wakes[1].State)
		}
		judge(t, "published", s)
		return nil
	}))
	l.A.Must(t, "xl", "shutdown", "-w", g.Name)
	check(t, d.AwaitConsole(within(t, soon), "Test result: SUCCESS"))
}

// A counter whose memory was changed finds and reports the wrong page, so its "ok" in other tests means something.
func TestDamageIsFound(t *testing.T) {
	l := lab.Start(t)
	g := counter("c1")
	d := create(t, g, l.A)
	l.A.Must(t, "xl", "save", "-c", g.Name, "/root/c1")
	out, err := d.Console(t.Context())
	check(t, err)
	wakes := xtfguest.Wakes(out)
	if len(wakes) != 1 {
		t.Fatalf("wakes are %+v, want one", wakes)
	}
	l.A.Must(t, "xl", "destroy", g.Name)

	// The image has the page as it was at the suspend; one bit of it is turned.
	const page, word = 7, 100
	was := judge(t, "at the suspend", wakes[0].State).Word(page, word)
	const script = `set -e
at=$(LC_ALL=C grep -obUaP -m1 "$1" /root/c1 | head -n1 | cut -d: -f1)
printf "$2" | dd of=/root/c1 bs=1 seek=$at conv=notrunc status=none`
	l.A.Must(t, "sh", "-c", script, "damage", escaped(`\x%02x`, was), escaped(`\%03o`, was^1<<40))

	l.A.Must(t, "xl", "restore", "/root/c1")
	d, err = xtfguest.Find(t.Context(), l.A, g.Name)
	check(t, err)
	_, err = d.Check(within(t, soon))
	var bad *xtfguest.BadError
	if !errors.As(err, &bad) {
		t.Fatalf("check of a damaged memory says %v", err)
	}
	t.Log(bad)
	want := fmt.Sprintf("page %d word %d at count ", page, word)
	values := fmt.Sprintf("found %016x, want %016x", was^1<<40, was)
	if !strings.HasPrefix(bad.Found, want) || !strings.Contains(bad.Found, values) {
		t.Errorf("found %q, want %q and %q", bad.Found, want, values)
	}
	l.A.Must(t, "xl", "shutdown", "-w", g.Name)
	check(t, d.AwaitConsole(within(t, soon), "Test result: FAILURE"))
}

// escaped writes a word of memory byte by byte.
func escaped(format string, word uint64) string {
	var s strings.Builder
	for _, b := range binary.LittleEndian.AppendUint64(nil, word) {
		fmt.Fprintf(&s, format, b)
	}
	return s.String()
}

//go:build lab

package scenario

import (
	"context"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

func TestMain(m *testing.M) { lab.Main(m) }

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

// begin gives hosts with xlft on them.
func begin(t *testing.T, s ft.Settings) *lab.Lab {
	t.Helper()
	l := lab.Start(t)
	check(t, ft.Install(within(t, 2*time.Minute), l, s))
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for _, h := range l.Hosts() {
			t.Logf("journal of %s:\n%s", h.Name(), ft.Journal(ctx, h))
		}
	})
	return l
}

func TestFirst(t *testing.T) {
	l := begin(t, ft.Usual)
	g := lab.NewGuest("web1", 10)
	check(t, l.A.CreateGuest(within(t, time.Minute), g))
	c, err := l.DialGuest(within(t, time.Minute), g)
	check(t, err)
	defer c.Close()
	var want probe.State
	add := func(n uint64) {
		t.Helper()
		want = probe.State{Count: want.Count + 1, Sum: probe.Fold(want.Sum, n)}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		got, err := c.Add(n)
		check(t, err)
		if got != want {
			t.Fatalf("state %+v after %d, want %+v", got, n, want)
		}
	}
	add(1)
	t.Log(l.A.Must(t, "xl", "ft-check", "web1"))
	b := time.Now()
	out, err := l.A.Run(within(t, 2*time.Minute), "sh", "-c", "xl ft-start web1 2>&1")
	t.Logf("ft-start took %v: %s", time.Since(b), out)
	check(t, err)
	for i := range uint64(20) {
		add(i)
	}
	t.Log(l.A.Must(t, "xl", "ft-status", "web1"))
	t.Log(l.B.Must(t, "xl", "ft-list"))
	l.A.Kill()
	killed := time.Now()
	add(99)
	t.Logf("first reply %v after the kill", time.Since(killed))
	for i := range uint64(20) {
		add(i)
	}
	t.Log(l.B.Must(t, "xl", "ft-list"))
	t.Log(l.B.Must(t, "xl", "list"))
	t.Log(ft.Journal(t.Context(), l.B))
}

package wire

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"
)

type named struct {
	net.Conn
	address string
}

func (named) Close() error { return nil }

// The connections of one session go by one path: heartbeats by another one would hide for
// ack_timeout that the path of the data is broken.
func TestOneSessionOnePath(t *testing.T) {
	calls := 0
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if address == "first" {
			if calls++; calls == 1 { // it is just coming back
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}
		return named{nil, address}, nil
	}
	both := []string{"first", "second"}
	control, err := race(t.Context(), path(t.Context(), both), dial)
	if err != nil {
		t.Fatal(err)
	}
	by := By(t.Context(), control.(named).address)
	data, err := race(by, path(by, both), dial)
	if err != nil || data.(named).address != "second" {
		t.Errorf("control goes by second, data by %v, %v", data, err)
	}
	// Another peer's, or none: all are tried.
	for _, ctx := range []context.Context{t.Context(), By(t.Context(), ""), By(t.Context(), "third")} {
		if p := path(ctx, both); len(p) != 2 {
			t.Errorf("%q: %q", Path(ctx), p)
		}
	}
}

// Races leave nothing behind.
func TestRaceLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	for i := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%5)*time.Millisecond)
		race(ctx, []string{"a", "b", "c"}, func(ctx context.Context, address string) (net.Conn, error) {
			if i%3 == 0 {
				return nil, fmt.Errorf("no")
			}
			<-ctx.Done()
			if i%2 == 0 {
				return named{nil, address}, nil
			}
			return nil, ctx.Err()
		})
		cancel()
	}
	time.Sleep(100 * time.Millisecond)
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, were %d", after, before)
	}
}

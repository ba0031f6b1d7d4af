package wire

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A way is how an address behaves.
type way struct {
	after time.Duration
	err   error
}

type closing struct {
	net.Conn
	address string
	closed  *[]string
}

func (c closing) Close() error {
	*c.closed = append(*c.closed, c.address)
	return nil
}

// The preferred address is taken if it answers soon, else the first that does; none is left
// open beside it.
func TestRace(t *testing.T) {
	refused := errors.New("connection refused")
	const slow = time.Hour // until it is cancelled
	for _, c := range []struct {
		name  string
		paths map[string]way
		want  string
		after time.Duration
	}{
		{"the first", map[string]way{"a": {}, "b": {}, "c": {}}, "a", 0},
		{"the first, a little slow", map[string]way{"a": {after: 200 * time.Millisecond}, "b": {}, "c": {}}, "a", 200 * time.Millisecond},
		{"the first is silent", map[string]way{"a": {after: slow}, "b": {}, "c": {}}, "b", attemptDelay},
		{"the first is slow", map[string]way{"a": {after: 300 * time.Millisecond}, "b": {after: 100 * time.Millisecond}, "c": {}}, "a", 300 * time.Millisecond},
		{"the first refuses", map[string]way{"a": {err: refused}, "b": {}, "c": {}}, "b", 0},
		{"two are silent", map[string]way{"a": {after: slow}, "b": {after: slow}, "c": {}}, "c", 2 * attemptDelay},
		{"all refuse", map[string]way{"a": {err: refused}, "b": {err: refused}, "c": {err: refused}}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var closed []string
				begun := time.Now()
				conn, err := race(t.Context(), []string{"a", "b", "c"}, func(ctx context.Context, address string) (net.Conn, error) {
					p := c.paths[address]
					select {
					case <-time.After(p.after):
					case <-ctx.Done():
						if p.after == slow {
							return nil, ctx.Err()
						}
					}
					if p.err != nil {
						return nil, errors.New(address + ": " + p.err.Error())
					}
					return closing{nil, address, &closed}, nil
				})
				took := time.Since(begun)
				if c.want == "" {
					if err == nil || strings.Count(err.Error(), "refused") != 3 {
						t.Errorf("%v, want what each said", err)
					}
				} else if err != nil || conn.(closing).address != c.want {
					t.Errorf("%v, %v, want %s", conn, err, c.want)
				}
				if took != c.after {
					t.Errorf("it took %v, want %v", took, c.after)
				}
				synctest.Wait()
				for _, a := range closed {
					if a == c.want {
						t.Error("the connection that was returned is closed")
					}
				}
			})
		})
	}
}

// A connection that stands too late is closed.
func TestRaceCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed []string
		conn, err := race(t.Context(), []string{"a", "b"}, func(ctx context.Context, address string) (net.Conn, error) {
			if address == "a" {
				<-ctx.Done() // it stood at the same moment
			}
			return closing{nil, address, &closed}, nil
		})
		if err != nil || conn.(closing).address != "b" {
			t.Fatal(conn, err)
		}
		synctest.Wait()
		if len(closed) != 1 || closed[0] != "a" {
			t.Errorf("closed: %v, want a", closed)
		}
	})
}

// Whoever calls may give up.
func TestRaceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := race(ctx, []string{"a", "b"}, func(ctx context.Context, address string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the caller's end", err)
		}
	})
}

package protector

import (
	"testing"
	"testing/synctest"
	"time"
)

// What an operator ended stays so for good, or until its time; of another run of the domain it
// says nothing.
func TestStoppedRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(time.Hour).Truncate(time.Second)
		is := func(what, run string, until time.Time) {
			t.Helper()
			if r, u := StoppedRun(dir, "web1"); r != run || !u.Equal(until) {
				t.Errorf("%s: %q until %v, want %q until %v", what, r, u, run, until)
			}
		}
		mark := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		is("nothing", "", time.Time{})
		mark(MarkAgain(dir, "web1", "boot/7", at))
		is("it is to be stopped", "", time.Time{})
		mark(MarkStopped(dir, "web1", "boot/7"))
		is("it is stopped", "boot/7", at)
		time.Sleep(time.Hour - 2*time.Second)
		is("just before", "boot/7", at)
		time.Sleep(3 * time.Second)
		is("the time is over", "", time.Time{})
		mark(MarkAgain(dir, "web1", "", time.Time{}))
		is("for good", "boot/7", time.Time{})
		mark(MarkAgain(dir, "web1", "boot/6", at))
		is("another run's", "boot/7", time.Time{})
		mark(MarkStopped(dir, "web1", ""))
		is("it was started", "", time.Time{})
		mark(MarkStopped(dir, "web1", "boot/7"))
		is("stopped anew", "boot/7", time.Time{})
	})
}

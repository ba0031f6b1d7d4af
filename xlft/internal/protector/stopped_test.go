package protector

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// What an operator ended stays so for good, or until its time, which holds for any run of the
// domain; of another run a plain stop says nothing.
func TestStopped(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(time.Hour).Truncate(time.Second)
		is := func(what, run string, stopped bool, until time.Time) {
			t.Helper()
			if s, u := Stopped(dir, "web1", run); s != stopped || !u.Equal(until) {
				t.Errorf("%s: %v until %v, want %v until %v", what, s, u, stopped, until)
			}
		}
		mark := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		// A file's time is the system's, which is not the test's.
		stop := func(run string) {
			t.Helper()
			mark(MarkStopped(dir, "web1", run))
			mark(os.Chtimes(stoppedFile(dir, "web1"), time.Now(), time.Now()))
		}
		is("nothing", "boot/7", false, time.Time{})
		mark(MarkAgain(dir, "web1", at))
		stop("boot/7")
		is("it is stopped for a time", "boot/7", true, at)
		is("it was started again meanwhile", "boot/8", true, at)
		time.Sleep(time.Hour - 2*time.Second)
		is("just before", "boot/7", true, at)
		time.Sleep(3 * time.Second)
		is("the time is over", "boot/7", false, time.Time{})
		stop("boot/7")
		is("stopped after that", "boot/7", true, time.Time{})
		is("of another run", "boot/8", false, time.Time{})
		is("of a run that can't be told from others", "", false, time.Time{})
		mark(MarkAgain(dir, "web1", time.Now().Add(time.Hour)))
		mark(MarkAgain(dir, "web1", time.Time{}))
		is("for good", "boot/7", true, time.Time{})
		mark(MarkStopped(dir, "web1", ""))
		is("it was started", "boot/7", false, time.Time{})
		mark(MarkAgain(dir, "web1", time.Now().Add(10*365*24*time.Hour)))
		is("a clock that was wrong", "boot/7", false, time.Time{})
	})
}

package diskrepl

import (
	"testing"
	"testing/synctest"
)

// Overlapping ranges have their turns in the order in which they came, and others
// do not wait for them.
func TestRangeLockIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l rangeLock
		first := l.lock(0, 10)
		long := make(chan span)
		go func() { long <- l.lock(0, 100) }()
		synctest.Wait()
		short := make(chan span)
		go func() { short <- l.lock(50, 1) }() // free, but the long one came before
		synctest.Wait()
		other := l.lock(200, 1)
		l.unlock(other)
		select {
		case <-short:
			t.Fatal("the short one overtook the long one")
		default:
		}
		l.unlock(first)
		s := <-long
		select {
		case <-short:
			t.Error("two hold one range")
		default:
		}
		l.unlock(s)
		l.unlock(<-short)
		if len(l.held)+len(l.waiting) > 0 {
			t.Errorf("left: %v, %v", l.held, l.waiting)
		}
	})
}

package rangelock

import (
	"testing"
	"testing/synctest"
)

// Overlapping ranges have their turns in the order in which they came, and others
// do not wait for them.
func TestLockIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lock
		first := l.Lock(0, 10)
		long := make(chan Span)
		go func() { long <- l.Lock(0, 100) }()
		synctest.Wait()
		short := make(chan Span)
		go func() { short <- l.Lock(50, 1) }() // free, but the long one came before
		synctest.Wait()
		other := l.Lock(200, 1)
		l.Unlock(other)
		select {
		case <-short:
			t.Fatal("the short one overtook the long one")
		default:
		}
		l.Unlock(first)
		s := <-long
		select {
		case <-short:
			t.Error("two hold one range")
		default:
		}
		l.Unlock(s)
		l.Unlock(<-short)
		if len(l.held)+len(l.waiting) > 0 {
			t.Errorf("left: %v, %v", l.held, l.waiting)
		}
	})
}

// Those that share a range have it together, and one that locks it waits for them
// and then has its turn before those that come later.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lock
		a, b := l.Share(0, 10), l.Share(5, 10)
		alone := make(chan Span)
		go func() { alone <- l.Lock(0, 100) }()
		synctest.Wait()
		later := make(chan Span)
		go func() { later <- l.Share(0, 1) }()
		synctest.Wait()
		l.Unlock(a)
		synctest.Wait()
		select {
		case <-alone:
			t.Error("locked while it is shared")
		case <-later:
			t.Fatal("one that shares overtook one that locks")
		default:
		}
		l.Unlock(b)
		s := <-alone
		synctest.Wait()
		select {
		case <-later:
			t.Error("shared while it is locked")
		default:
		}
		l.Unlock(s)
		l.Unlock(<-later)
		if len(l.held)+len(l.waiting) > 0 {
			t.Errorf("left: %v, %v", l.held, l.waiting)
		}
	})
}

package xen

import (
	"os"
	"path/filepath"
	"testing"
)

func TestClaim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web1.suspend")
	yes, no := func() bool { return true }, func() bool { return false }
	open := func(instance string) *claim {
		t.Helper()
		c := new(claim)
		if err := c.keep(path, instance); err != nil {
			t.Fatal(err)
		}
		return c
	}
	check := func(c *claim, made, alone, besides bool) {
		t.Helper()
		if c.made() != made || c.holds(no) != alone || c.holds(yes) != besides {
			t.Errorf("made %v, holds alone %v, besides another %v", c.made(), c.holds(no), c.holds(yes))
		}
	}

	c := open("boot/7")
	check(c, false, false, false)
	c.set(true)
	check(c, true, true, false)
	check(open("boot/7"), true, true, false) // its successor, after a kill
	c.saw()
	check(c, true, true, true)
	c.set(false)
	check(c, false, false, false)
	check(open("boot/7"), false, false, false)

	c.set(true)
	check(open("boot/71"), false, false, false) // another domain of that name
	check(open("boot/7"), false, false, false)
	for _, was := range []string{"1", "", "1 boot/8\n", "2 boot/7\n", "1 boot/7 more of an earlier version\n"} {
		if err := os.WriteFile(path, []byte(was), 0o600); err != nil {
			t.Fatal(err)
		}
		check(open("boot/7"), false, false, false)
		c := open("boot/7")
		c.set(true)
		check(open("boot/7"), true, true, false)
	}

	c = new(claim)
	if err := c.keep(filepath.Join(path, "not a directory"), "boot/7"); err == nil {
		t.Error("it is kept in nothing")
	}
	check(c, true, true, false)
	c.set(false)
	check(c, false, false, false)
}

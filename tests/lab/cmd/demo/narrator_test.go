//go:build linux

package main

import (
	"slices"
	"testing"
)

func TestLines(t *testing.T) {
	var got []string
	l := &lines{each: func(s string) { got = append(got, s) }}
	for _, s := range []string{"can be prot", "ected\r", "\n", "\r\x1b[K 1 %", "\r\x1b[K 2 %\r\x1b[K 3 %", "\r\x1b[Kprotected\r\n", "end"} {
		if _, err := l.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	l.flush()
	want := []string{"can be protected", "1 %", "protected", "end"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

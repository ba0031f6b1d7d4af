package agent_test

import (
	"bytes"
	"strconv"
	"testing"
)

func discard() *bytes.Buffer { return new(bytes.Buffer) }

type chanWriter chan string

func (c chanWriter) Write(p []byte) (int, error) {
	c <- string(p)
	return len(p), nil
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

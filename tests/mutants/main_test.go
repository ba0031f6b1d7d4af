package main

import (
	"os"
	"testing"
)

// Every mutant's text is still there, once: a change of the code takes its mutants
// along.
func TestMutantsApply(t *testing.T) {
	if err := os.Chdir("../.."); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("tests/mutants/mutants.txt")
	if err != nil {
		t.Fatal(err)
	}
	all, err := parse(string(b))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if _, err := mutate(m); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
	t.Logf("%d mutants", len(all))
}

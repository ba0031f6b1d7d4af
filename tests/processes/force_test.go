package processes

import (
	"errors"
	"slices"
	"testing"
)

// A fault that is wanted twice at once is done once, and undone when nobody wants it
// any more.
func TestForce(t *testing.T) {
	w := &World{}
	var did []bool
	set := func(on bool) error {
		did = append(did, on)
		return nil
	}
	first, err := w.force("x", set)
	if err != nil {
		t.Fatal(err)
	}
	// Its own way to undo it would restore what the first fault made of it.
	second, err := w.force("x", func(bool) error { t.Error("done a second time"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	first()
	first()
	if !slices.Equal(did, []bool{true}) {
		t.Errorf("while one still wants it: %v", did)
	}
	again, _ := w.force("x", nil)
	again()
	second()
	if !slices.Equal(did, []bool{true, false}) {
		t.Errorf("in the end: %v", did)
	}
	no := errors.New("no")
	if _, err := w.force("x", func(bool) error { return no }); err != no {
		t.Errorf("what can't be done: %v", err)
	}
	if undo, err := w.force("x", set); err != nil || len(did) != 3 {
		t.Errorf("after one that could not be done: %v, %v", did, err)
	} else {
		undo()
	}
}

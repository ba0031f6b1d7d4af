package preflight

import (
	"errors"
	"reflect"
	"testing"

	"xlft/xlft/wire"
)

// Each reason of a gate's refusal is a problem of its own.
func TestEach(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	if got := each(errors.Join(a, errors.Join(b, nil, c))); !reflect.DeepEqual(got, []error{a, b, c}) {
		t.Errorf("got %v", got)
	}
	if got := append(each(nil), each(a)...); !reflect.DeepEqual(got, []error{a}) {
		t.Errorf("got %v", got)
	}
}

// A problem of the domain itself, which both hosts see, is named once; one of
// the backup is named as the backup's.
func TestMerge(t *testing.T) {
	pci := wire.Problem{What: "it has a PCI device", Advice: "Remove it."}
	bridge := wire.Problem{What: "no bridge br0", Advice: "Make one."}
	own := pci
	own.Host = "alpha"
	theirs := bridge
	theirs.Host = "beta"
	got := merge([]wire.Problem{own}, []wire.Problem{pci, bridge}, "beta")
	if want := []wire.Problem{own, theirs}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

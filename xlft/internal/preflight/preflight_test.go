package preflight

import (
	"reflect"
	"testing"

	"xlft/xlft/wire"
)

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

package protector

import (
	"errors"
	"strings"
	"testing"

	"xlft/netbuffer"
	"xlft/xlft"
)

// faulty is a network gate whose Seal fails until the fault is mended.
type faulty struct {
	xlft.Gate
	holding bool
	fault   error
	mending error    // AddVifs and Restore fail so
	beside  error    // of Held
	calls   []string // in order
}

func (f *faulty) Holding() (holding, adopted bool) { return f.holding, false }

func (f *faulty) Seal(uint64) error {
	f.calls = append(f.calls, "seal")
	return f.fault
}

func (f *faulty) mend(what, vif string) ([]string, error) {
	f.calls = append(f.calls, what)
	if f.mending != nil {
		return nil, f.mending
	}
	f.fault = nil
	return []string{vif}, nil
}

func (f *faulty) Held() (held, limit uint64, err error) { return 0, 1, f.beside }

func (f *faulty) Events() <-chan struct{} { return nil }

func (f *faulty) Watching() (netbuffer.Way, error) { return netbuffer.Polling, f.beside }

func (f *faulty) Missing(devices []int) []int { return devices[1:] }

func (f *faulty) AddVifs() ([]string, error) { return f.mend("add", "vif1.1") }
func (f *faulty) Restore() ([]string, error) { return f.mend("restore", "vif1.0") }

// A seal that fails because a device is not held gets the device held. The epoch
// fails unless it is the first, and what went wrong on the way is told.
func TestSealMends(t *testing.T) {
	busy := errors.New("netlink is busy")
	for _, c := range []struct {
		name    string
		gate    faulty
		want    []error // of Seal; none: it works
		words   string
		actions string
	}{
		{"new vif", faulty{holding: true, fault: netbuffer.ErrNewVif}, []error{netbuffer.ErrNewVif}, "now held: vif1.1", "seal add"},
		{"bypassed", faulty{holding: true, fault: netbuffer.ErrBypassed}, []error{netbuffer.ErrBypassed}, "now held: vif1.0", "seal restore"},
		{"new vif before the first seal", faulty{fault: netbuffer.ErrNewVif}, nil, "", "seal add seal"},
		{"bypassed before the first seal", faulty{fault: netbuffer.ErrBypassed}, nil, "", "seal restore seal"},
		{"can't be mended", faulty{holding: true, fault: netbuffer.ErrNewVif, mending: busy}, []error{netbuffer.ErrNewVif, busy}, "", "seal add"},
		{"can't be mended before the first seal", faulty{fault: netbuffer.ErrBypassed, mending: busy}, []error{netbuffer.ErrBypassed, busy}, "", "seal restore"},
		{"other errors", faulty{holding: true, fault: netbuffer.ErrHeld}, []error{netbuffer.ErrHeld}, "", "seal"},
		{"bypassed half way", faulty{holding: true, fault: errors.Join(netbuffer.ErrBroken, netbuffer.ErrBypassed)}, []error{netbuffer.ErrBroken}, "", "seal"},
		{"nothing wrong", faulty{holding: true}, nil, "", "seal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := (&netGate{gate: &c.gate}).Seal(7)
			if (err != nil) != (c.want != nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			for _, want := range c.want {
				if !errors.Is(err, want) || !strings.Contains(err.Error(), c.words) {
					t.Errorf("got %v, want %v and %q", err, want, c.words)
				}
			}
			if got := strings.Join(c.gate.calls, " "); got != c.actions {
				t.Errorf("did %q, want %q", got, c.actions)
			}
		})
	}
}

// A network device without an interface behind the gate is named, and what some
// other program put beside the gate. Devices that came since, and those that
// another program took away from the gate, are behind it.
func TestCovers(t *testing.T) {
	f := &faulty{}
	err := (&netGate{gate: f}).covers(3, []int{0, 1, 4})
	if !errors.Is(err, netbuffer.ErrNoVif) || !strings.Contains(err.Error(), "vif3.1 ") || !strings.Contains(err.Error(), "vif3.4 ") || strings.Contains(err.Error(), "vif3.0 ") {
		t.Errorf("got %v", err)
	}
	if err := (&netGate{gate: f}).covers(3, []int{0}); err != nil {
		t.Errorf("nothing is missing: %v", err)
	}
	if got := strings.Join(f.calls, " "); got != "add restore add restore" {
		t.Errorf("did %q", got)
	}
	f.beside = netbuffer.ErrForeign
	if err := (&netGate{gate: f}).covers(3, []int{0, 1}); !errors.Is(err, netbuffer.ErrForeign) || !errors.Is(err, netbuffer.ErrNoVif) {
		t.Errorf("beside another program: %v", err)
	}
	f.mending = errors.New("netlink is busy")
	if err := (&netGate{gate: f}).covers(3, []int{0}); !errors.Is(err, f.mending) {
		t.Errorf("got %v", err)
	}
}

// How the gate notices output is said with why it is not a better way.
func TestWatching(t *testing.T) {
	for want, beside := range map[string]error{"polling": nil, "polling (no cls_bpf in this kernel)": errors.New("no cls_bpf in this kernel")} {
		if got := (&netGate{gate: &faulty{beside: beside}}).watching(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

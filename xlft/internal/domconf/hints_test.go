package domconf

import (
	"strings"
	"testing"
)

func TestHints(t *testing.T) {
	for _, c := range []struct {
		name       string
		cmdline    string
		vcpus      int
		processors int
		want       []string
	}{
		{"as it should be", "root=/dev/xvda nohz=off loglevel=3", 2, 2, nil},
		{"a kernel as Debian has it", "root=/dev/xvda ro quiet", 1, 4, []string{"nohz=off"}},
		{"a kernel of its own disk", "", 1, 4, nil},
		{"more vCPUs than processors", "nohz=off", 4, 2, []string{"4 vCPUs, and this host 2 processors"}},
		{"nobody knows how many processors", "nohz=off", 4, 0, nil},
		{"it logs", "nohz=off ignore_loglevel loglevel=8", 1, 4, []string{"(ignore_loglevel)"}},
		{"all", "loglevel=8", 4, 1, []string{"4 vCPUs", "(loglevel=8)", "nohz=off"}},
	} {
		var conf Config
		conf.Build.Cmdline, conf.Build.MaxVCPUs = c.cmdline, c.vcpus
		got := conf.Hints(c.processors)
		ok := len(got) == len(c.want)
		for i := range min(len(got), len(c.want)) {
			ok = ok && strings.Contains(got[i], c.want[i])
		}
		if !ok {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

package domconf_test

import (
	"slices"
	"testing"

	"xlft/xlft/internal/domconf"
)

func TestChanges(t *testing.T) {
	const was = `{"c_info":{"type":"pvh","name":"web1"},"b_info":{"max_vcpus":2,"avail_vcpus":[0,1],"target_memkb":1000},
		"disks":[{"vdev":"xvda","pdev_path":"/a","readwrite":1}],"nics":[{"devid":0,"mac":"00:16:3e:00:00:01","bridge":"xenbr0"}]}`
	parse := func(s string) *domconf.Config {
		c, err := domconf.Parse([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		now  string
		want []string
	}{
		{was, nil},
		{`{"c_info":{"type":"pvh","name":"web1"},"b_info":{"max_vcpus":2,"avail_vcpus":[0,1],"target_memkb":2000},
			"nics":[{"devid":0,"mac":"00:16:3e:00:00:01","bridge":"xenbr0"}],"disks":[{"vdev":"xvda","pdev_path":"/a","readwrite":1}]}`, nil},
		{`{"c_info":{"type":"pvh","name":"web2"},"b_info":{"max_vcpus":2,"avail_vcpus":[0]},
			"disks":[{"vdev":"xvda","pdev_path":"/b","readwrite":1},{"vdev":"xvdb"}],"nics":[{"devid":1,"bridge":"xenbr0"}],"pcidevs":[{}]}`,
			[]string{"its name is web2 now", "it has other vCPUs (vcpu-set)", "disk xvda has changed", "disk xvdb came",
				"network device 0 is gone", "network device 1 came", "it has 1 devices in pcidevs, and had 0"}},
	} {
		if got := parse(was).Changes(parse(c.now)); !slices.Equal(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

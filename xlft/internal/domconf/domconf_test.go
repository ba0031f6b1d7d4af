package domconf_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"xlft/xlft/internal/domconf"
)

const pvh = `{"c_info":{"type":"pvh","name":"web1","uuid":"4d","run_hotplug_scripts":"True"},
"b_info":{"max_vcpus":1,"max_memkb":131072,"target_memkb":131072,"shadow_memkb":2048,"type.pvh":{}},
"nics":[{"devid":0,"mac":"00:16:3e:20:00:10","bridge":"xenbr0","script":"vif-bridge"}]%s}`

func TestProblems(t *testing.T) {
	for _, c := range []struct {
		name, json string
		shadow     bool
		want       []string
	}{
		{"pvh", fmt.Sprintf(pvh, ""), false, nil},
		{"disk", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"/dev/vg/web1","vdev":"xvda","readwrite":1}]`), false, []string{"disk xvda (/dev/vg/web1) would not be copied"}},
		{"disk by QEMU", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"nbd+unix:///xvda?socket=/run/xlft/nbd/web1.sock","vdev":"xvda","backend":"qdisk","format":"raw","readwrite":1}]`), false, []string{"web1.sock) would not be copied: QEMU serves it"}},
		{"disk in a format of QEMU", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"/srv/web1","vdev":"xvda","format":"qcow2","readwrite":1}]`), false, []string{"QEMU serves it"}},
		{"raw disk", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"/srv/web1","vdev":"xvda","format":"raw","readwrite":1}]`), false, []string{"does not have script=block-xlft"}},
		{"read-only disk by QEMU", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"/srv/web1.iso","vdev":"xvdb","backend":"qdisk","format":"raw"}]`), false, nil},
		{"read-only disk", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"/dev/vg/web1","vdev":"xvda"}]`), false, nil},
		{"copied disk", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"web1/xvda","vdev":"xvda","script":"/etc/xen/scripts/block-xlft","readwrite":1}]`), false, nil},
		{"copied disk of another", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"web2/xvda","vdev":"xvda","script":"block-xlft","readwrite":1}]`), false, []string{"has the target web2/xvda, not web1/xvda"}},
		{"pci", fmt.Sprintf(pvh, `,"pcidevs":[{"dev":1}]`), false, []string{"1 of: PCI device"}},
		{"two at once", fmt.Sprintf(pvh, `,"pcidevs":[{}],"usbctrls":[{}],"usbdevs":[{}]`), false, []string{"1 of: PCI", "2 of: USB"}},
		{"pv without log-dirty", `{"c_info":{"type":"pv"}}`, false, []string{"built without shadow paging"}},
		{"pv with log-dirty", `{"c_info":{"type":"pv"}}`, true, nil},
		{"hvm", `{"c_info":{"type":"hvm"},"b_info":{"device_model_version":"qemu_xen"}}`, false, []string{"device model (QEMU)"}},
		{"NIC of a driver domain", `{"c_info":{"type":"pvh"},"nics":[{"devid":0,"mac":"00:16:3e:20:00:10"},{"devid":1,"mac":"00:16:3e:20:00:11","backend_domid":3,"backend_domname":"sys-net"}]}`, false, []string{"network device 1 (00:16:3e:20:00:11) is served by domain sys-net"}},
		{"NIC of a driver domain by number", `{"c_info":{"type":"pvh"},"nics":[{"devid":0,"backend_domid":3}]}`, false, []string{"is served by domain 3"}},
		{"NIC of a driver domain by name", `{"c_info":{"type":"pvh"},"nics":[{"devid":0,"backend_domname":"sys-net"}]}`, false, []string{"is served by domain sys-net"}},
		{"devices of dom0", `{"c_info":{"type":"pvh"},"nics":[{"devid":0,"backend_domname":"Domain-0"},{"devid":1,"backend_domname":"0","backend_domid":0}],"disks":[{"vdev":"xvda","backend_domname":"0"}]}`, false, nil},
		{"disk of a driver domain", fmt.Sprintf(pvh, `,"disks":[{"backend_domid":3,"pdev_path":"/srv/a","vdev":"xvda"},{"backend_domname":"storage","pdev_path":"/srv/b","vdev":"xvdb","readwrite":1}]`), false,
			[]string{"disk xvda is served by domain 3", "disk xvdb is served by domain storage"}},
		{"no migration", `{"c_info":{"type":"pvh"},"b_info":{"disable_migrate":"True","nested_hvm":"False"}}`, false, []string{"nomigrate=1"}},
		{"nested", `{"c_info":{"type":"pvh"},"b_info":{"disable_migrate":"<default>","nested_hvm":"True"}}`, false, []string{"nestedhvm=1"}},
		{"hardware", `{"c_info":{"type":"pvh"},"b_info":{"ioports":[{"first":1016,"number":8}],"iomem":[{"start":1}],"irqs":[4,5]}}`, false,
			[]string{"1 of: range of I/O ports", "1 of: range of I/O memory", "2 of: hardware interrupt"}},
		{"virtio", fmt.Sprintf(pvh, `,"virtios":[{"type":"virtio,device22"}],"disks":[{"pdev_path":"/srv/web1","vdev":"xvda","specification":"virtio","readwrite":1}]`), false,
			[]string{"disk xvda (/srv/web1) is a virtio device", "1 of: virtio device"}},
		{"unknown type", `{"c_info":{"type":"xyz"}}`, false, []string{`unknown type "xyz"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf, err := domconf.Parse([]byte(c.json))
			if err != nil {
				t.Fatal(err)
			}
			ps := conf.Problems(c.shadow)
			if len(ps) != len(c.want) {
				t.Fatalf("problems %v, want %d", ps, len(c.want))
			}
			for i, p := range ps {
				if !strings.Contains(p.What, c.want[i]) || p.Advice == "" {
					t.Errorf("problem %+v, want %q with advice", p, c.want[i])
				}
			}
		})
	}
	for _, bad := range []string{"", "{}", "[]", `{"c_info":{"type":7}}`} {
		if _, err := domconf.Parse([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestDevices(t *testing.T) {
	conf, err := domconf.Parse([]byte(`{"c_info":{"type":"pvh"},"nics":[{"mac":"00:16:3e:20:00:10"},{"devid":2}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := conf.Devices(); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("devices %v", got)
	}
}

func TestMemoryProblems(t *testing.T) {
	for _, c := range []struct {
		name                   string
		has, unpopulated, want uint64
		what                   string
	}{
		{"as its target says", 131072, 0, 131072, ""},
		{"within libxl's slack", 131072 + 1024, 0, 131072, ""},
		{"smaller than its target", 100000, 0, 131072, ""},
		{"not shrunk yet", 131072 + 1028, 0, 131072, "its replica could not have as much"},
		{"not populated", 100000, 4, 131072, "4 KiB are still to be populated"},
		{"no target known", 131072, 0, 0, ""},
	} {
		conf, err := domconf.Parse(fmt.Appendf(nil, `{"c_info":{"type":"pvh","name":"web1"},"b_info":{"target_memkb":%d}}`, c.want))
		if err != nil {
			t.Fatal(err)
		}
		ps := conf.MemoryProblems(c.has, c.unpopulated, 1024)
		if c.what == "" && len(ps) > 0 || c.what != "" && (len(ps) != 1 || !strings.Contains(ps[0].What, c.what) || ps[0].Advice == "") {
			t.Errorf("%s: %v, want %q", c.name, ps, c.what)
		}
	}
}

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
		{"disk of a driver domain", fmt.Sprintf(pvh, `,"disks":[{"pdev_path":"/dev/vg/web1","vdev":"xvda","backend_domid":2}]`), false, []string{"disk xvda is served by domain 2"}},
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

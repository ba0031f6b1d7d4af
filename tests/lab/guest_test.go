//go:build linux

package lab

import (
	"slices"
	"testing"
)

func TestRenderGuest(t *testing.T) {
	g := NewGuest("web1", 10)
	g.DirtyRate, g.WorkingSet = 500, 1000
	g.Disks = []string{"format=raw,vdev=xvda,access=rw,target=/root/disk.img"}
	g.Tools = true
	g.Config = "on_crash = \"preserve\"\n"
	const want = `name = "web1"
type = "pvh"
kernel = "/var/lib/xlft-lab/vmlinux"
ramdisk = "/var/lib/xlft-lab/initramfs"
extra = "console=hvc0 quiet mitigations=off iommu=off 8250.nr_uarts=0 apparmor=0 lab.ip4=10.20.0.10 lab.ip6=fd20::10 lab.peer4=10.20.0.1 lab.peer6=fd20::1 lab.peermac=02:20:00:00:00:01 lab.dirty=500,1000"
memory = 128
vcpus = 1
tsc_mode = "native"
vif = ["script=vif-lab,bridge=xenbr0,mac=00:16:3e:20:00:10"]
disk = ["format=raw,vdev=xvda,access=rw,target=/root/disk.img", "format=raw,vdev=xvdb,access=r,target=/var/lib/xlft-lab/tools.img"]
on_crash = "preserve"
`
	if got := g.Render(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestParseDomains(t *testing.T) {
	const out = `Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0   960     1     r-----      32.4
(null)                                       1   128     1     --p---       0.0
web1--incoming                               2   128     1     ---ss-       1.5
`
	got, err := parseDomains(out)
	if err != nil {
		t.Fatal(err)
	}
	want := []Domain{{"Domain-0", 0, "r-----"}, {"(null)", 1, "--p---"}, {"web1--incoming", 2, "---ss-"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := parseDomains("Name\nnonsense\n"); err == nil {
		t.Error("nonsense is taken for a domain")
	}
}

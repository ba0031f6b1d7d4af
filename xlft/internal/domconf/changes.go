package domconf

import (
	"fmt"
	"reflect"
	"slices"
)

// Changes says what of a domain is not as it was, apart from its memory: what
// somebody attached, detached or set since. Nothing of that is on a backup that was
// told of the earlier configuration.
func (c *Config) Changes(now *Config) (all []string) {
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if c.Create.Name != now.Create.Name {
		add("its name is %s now", now.Create.Name)
	}
	if c.Build.MaxVCPUs != now.Build.MaxVCPUs || !slices.Equal(c.Build.VCPUs, now.Build.VCPUs) {
		add("it has other vCPUs (vcpu-set)")
	}
	compare(c.Disks, now.Disks, func(d Disk) string { return "disk " + d.VDev }, add)
	compare(c.NICs, now.NICs, func(n NIC) string { return fmt.Sprintf("network device %d", n.DevID) }, add)
	was, is := reflect.ValueOf(*c), reflect.ValueOf(*now)
	for i := range was.NumField() {
		if was.Field(i).Kind() != reflect.Slice || was.Type().Field(i).Name == "Disks" || was.Type().Field(i).Name == "NICs" {
			continue
		}
		if was.Field(i).Len() != is.Field(i).Len() {
			add("it has %d devices in %s, and had %d", is.Field(i).Len(), was.Type().Field(i).Tag.Get("json"), was.Field(i).Len())
		}
	}
	return all
}

// compare says which devices came, went or changed.
func compare[D comparable](was, is []D, name func(D) string, add func(string, ...any)) {
	find := func(in []D, n string) (d D, ok bool) {
		i := slices.IndexFunc(in, func(d D) bool { return name(d) == n })
		if i < 0 {
			return d, false
		}
		return in[i], true
	}
	for _, d := range was {
		switch now, ok := find(is, name(d)); {
		case !ok:
			add("%s is gone", name(d))
		case now != d:
			add("%s has changed", name(d))
		}
	}
	for _, d := range is {
		if _, ok := find(was, name(d)); !ok {
			add("%s came", name(d))
		}
	}
}

package xen

import "testing"

// A UUID is written as libxl writes it: in its JSON and its file names.
func TestUUID(t *testing.T) {
	u := [16]byte{0x0a, 1, 2, 3, 0x10, 0, 0xff, 7, 8, 9, 0, 0, 0, 0, 0, 0x0f}
	if got := uuid(u); got != "0a010203-1000-ff07-0809-00000000000f" {
		t.Error(got)
	}
}

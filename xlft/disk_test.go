package xlft_test

import (
	"encoding/json"
	"testing"

	"xlft/xlft"
)

func TestDiskState(t *testing.T) {
	for text, want := range map[string]xlft.DiskState{
		`"up-to-date"`: xlft.UpToDate, `"inconsistent"`: xlft.Inconsistent, `"consistent"`: xlft.Consistent, `"outdated"`: xlft.Outdated, `""`: "",
		`"active"`: xlft.UpToDate, `"copying"`: xlft.Inconsistent, `"replica"`: xlft.Consistent,
	} {
		var got xlft.DiskState
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", text, got, err, want)
		}
	}
	var r xlft.DiskRecord
	if err := json.Unmarshal([]byte(`{"state":"Active"}`), &r); err == nil {
		t.Errorf("an unknown state is %q", r.State)
	}
}

package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlft/diskrepl"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
)

// fakeVerify answers as the disk server of web1 does, and returns the configuration
// that leads there.
func fakeVerify(t *testing.T, answers func(diskserver.Verification) []diskserver.Finding) (conf string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "verify") // not t.TempDir: the name of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := control.Listen(diskserver.CommandSocket(dir, "web1"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /verify", func(w http.ResponseWriter, r *http.Request) {
		var o diskserver.Verification
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			t.Error(err)
		}
		for _, f := range answers(o) {
			json.NewEncoder(w).Encode(f)
		}
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	conf = filepath.Join(dir, "xlft.toml")
	text := strings.Replace(minimalConf, "RUN", dir, 1)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return conf
}

// What differs is named, neighbours as one range, and the exit status tells equal
// copies, copies that differ and those of which it is not known apart.
func TestDiskVerify(t *testing.T) {
	at := func(off, n int64, unreadable string, repaired bool) diskrepl.Difference {
		return diskrepl.Difference{Offset: off, Length: n, Unreadable: unreadable, Repaired: repaired}
	}
	half, all := diskrepl.Compared{Total: 1 << 20, Compared: 1 << 19}, diskrepl.Compared{Total: 1 << 20, Compared: 1 << 20}
	const k = diskrepl.ChunkSize
	for _, c := range []struct {
		name    string
		args    []string
		want    diskserver.Verification
		answers []diskserver.Finding
		out     string
		says    string
		status  int
	}{
		{"equal", []string{"web1"}, diskserver.Verification{Rate: 5 << 20},
			[]diskserver.Finding{{VDev: "xvda", Compared: half}, {VDev: "xvda", Compared: all}, {VDev: "xvdb", Compared: all}, {Done: true}},
			"web1/xvda: 1048576 bytes are equal\nweb1/xvdb: 1048576 bytes are equal\n", "", 0},
		{"differ", []string{"--rate=1MiB", "web1/xvdb"}, diskserver.Verification{VDev: "xvdb", Rate: 1 << 20},
			[]diskserver.Finding{
				{VDev: "xvdb", Compared: half, Differences: []diskrepl.Difference{at(0, k, "", false), at(k, k, "", false)}},
				{VDev: "xvdb", Compared: all, Differences: []diskrepl.Difference{at(2*k, k, "backup", false), at(9*k, k, "primary", false)}}, {Done: true}},
			"web1/xvdb: 131072 bytes at 0 differ\nweb1/xvdb: 65536 bytes at 131072 of the copy can't be read\nweb1/xvdb: 65536 bytes at 589824 can't be read here\n",
			"disk verify: web1/xvdb: the copies differ\n", 1},
		{"repaired", []string{"--repair", "--rate=0", "web1"}, diskserver.Verification{Repair: true},
			[]diskserver.Finding{{VDev: "xvda", Compared: all, Differences: []diskrepl.Difference{at(k, k, "", true)}}, {Done: true}},
			"web1/xvda: 65536 bytes at 65536 differed, and were repaired\n", "disk verify: web1: the copies differed; they are equal now\n", 1},
		{"lost", []string{"web1"}, diskserver.Verification{Rate: 5 << 20},
			[]diskserver.Finding{{VDev: "xvda", Compared: half, Differences: []diskrepl.Difference{at(0, k, "", false)}}, {Error: "disk xvda: the replica hung up"}},
			"web1/xvda: 65536 bytes at 0 differ\n", "disk verify: web1: disk xvda: the replica hung up\n", 2},
		{"killed", []string{"web1"}, diskserver.Verification{Rate: 5 << 20}, []diskserver.Finding{{VDev: "xvda", Compared: half}},
			"", "disk verify: web1: the disk server ended before all was compared\n", 2},
		{"no rate", []string{"--rate=fast", "web1"}, diskserver.Verification{}, nil, "", "disk verify: web1: --rate: \"fast\" is no size such as \"64MiB\"\n", 2},
		{"nobody there", []string{"web2"}, diskserver.Verification{}, nil, "", "disk verify: web2: disk server: ", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := fakeVerify(t, func(o diskserver.Verification) []diskserver.Finding {
				if o != c.want {
					t.Errorf("asked for %+v, want %+v", o, c.want)
				}
				return c.answers
			})
			out, says, status := runStatus(t, append([]string{"--config", conf, "disk", "verify"}, c.args...)...)
			if out != c.out || !strings.HasPrefix(says, c.says) || status != c.status {
				t.Errorf("printed\n%s\nand said %q with status %d, want\n%s\nand %q with %d", out, says, status, c.out, c.says, c.status)
			}
		})
	}
}

// The JSON has each disk, an empty list of differences if there are none, and why
// it is not known.
func TestDiskVerifyJSON(t *testing.T) {
	conf := fakeVerify(t, func(diskserver.Verification) []diskserver.Finding {
		return []diskserver.Finding{{VDev: "xvda", Compared: diskrepl.Compared{Total: 512, Compared: 512}},
			{VDev: "xvdb", Compared: diskrepl.Compared{Total: 1024, Compared: 512}, Differences: []diskrepl.Difference{{Offset: 512, Length: 512, Unreadable: "backup"}}}, {Error: "lost"}}
	})
	out, _, status := runStatus(t, "--config", conf, "disk", "verify", "--json", "web1")
	const want = `{"domain":"web1","disks":[{"vdev":"xvda","total":512,"compared":512,"differences":[]},{"vdev":"xvdb","total":1024,"compared":512,"differences":[{"offset":512,"length":512,"unreadable":"backup"}]}],"error":"lost"}`
	if got := strings.Join(strings.Fields(out), ""); got != want || status != exitUnverified {
		t.Errorf("%s\nstatus %d, want\n%s", got, status, want)
	}
}

func TestDiskVerifyCompletion(t *testing.T) {
	conf := fakeVerify(t, nil)
	if out, _ := run(t, "--config", conf, "__complete", "disk", "verify", ""); !strings.HasPrefix(out, "web1\n") {
		t.Errorf("completion: %s", out)
	}
}

const minimalConf = "[host]\nrun_dir = \"RUN\"\n[arbiter]\ntype = \"none\"\naccept_split_brain = true\n[default]\nsync_rate = \"5MiB\"\n"

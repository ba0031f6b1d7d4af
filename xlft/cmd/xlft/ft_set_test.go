package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
)

// paced answers ft-set as a protector does.
func paced(t *testing.T, runDir string) {
	l, err := control.Listen(control.Socket(runDir, "web1"))
	if err != nil {
		t.Fatal(err)
	}
	p := xlft.Pacing{Mode: xlft.ModeEvent, EpochMin: time.Millisecond, EpochMax: time.Second, WindowMax: 500 * time.Millisecond, RunShare: 0.5, DirtyMax: 16384}
	mux := http.NewServeMux()
	control.Handle(mux, "POST /pace", func(r *http.Request) (any, error) {
		var words []string
		if err := json.NewDecoder(r.Body).Decode(&words); err != nil {
			return nil, err
		}
		now, err := config.Repace(p, words)
		if err == nil {
			p = now
		}
		return now, err
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
}

func TestSet(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "xlft.toml")
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+dir+"\"\n[arbiter]\ntype = \"none\"\naccept_split_brain = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	paced(t, dir)
	for _, c := range []struct{ args, out, complaint string }{
		{"web1", "mode event epoch_min 1ms epoch_max 1s event_window_max 500ms run_share 0.5 dirty_max 16384", ""},
		{"web1 mode=interval epoch_max=100ms", "mode interval epoch_min 1ms not used in this mode epoch_max 100ms event_window_max 500ms not used in this mode run_share 0.5 not used in this mode dirty_max 16384", ""},
		{"web1 epoch_max=1ms", "", "ft-set: web1: epoch_max: 1ms is not between 5ms and 1m0s"},
		{"web1 epoch_max=1s retry_delay=1s", "", "ft-set: web1: retry_delay: no setting that can change while a domain is protected"},
		{"web1 dirty_max=7 --json", `{ "mode": "interval", "epoch_min_ns": 1000000, "epoch_max_ns": 100000000, "event_window_max_ns": 500000000, "run_share": 0.5, "dirty_max": 7 }`, ""},
		{"web2", "", "ft-set: web2: is not protected from this host (protector not running)"},
		{"", "", "requires at least 1 arg(s), only received 0"},
	} {
		out, complaint := run(t, append([]string{"--config", conf, "ft-set"}, strings.Fields(c.args)...)...)
		if got := strings.Join(strings.Fields(out), " "); got != c.out || !strings.HasPrefix(complaint, c.complaint) || (complaint == "") != (c.complaint == "") {
			t.Errorf("ft-set %s prints\n%s\n%s", c.args, out, complaint)
		}
	}
	for words, want := range map[string]string{"": "web1", "web1": "mode= epoch_min=", "web1 mode=": "mode=event mode=strict mode=interval", "web1 mode=event e": "epoch_min= epoch_max= event_window_max="} {
		args := strings.Split(words, " ")
		if words == "web1" {
			args = append(args, "")
		}
		out, _ := run(t, append([]string{"__complete", "--config", conf, "ft-set"}, args...)...)
		if got := strings.Join(strings.Fields(out), " "); !strings.HasPrefix(got, want) {
			t.Errorf("completion of %q: %s", words, got)
		}
	}
}

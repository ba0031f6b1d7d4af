package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/store"
	"xlft/xlft/wire"
)

// resolves answers ft-resolve as a daemon does, and returns what was said.
func resolves(t *testing.T, socket string, known map[string]xlft.Decision) *[]protector.Resolution {
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	said := new([]protector.Resolution)
	mux := http.NewServeMux()
	control.Handle(mux, "GET /decision", func(r *http.Request) (any, error) {
		return known[r.URL.Query().Get("domain")], nil
	})
	control.Handle(mux, "GET /replicas", func(*http.Request) (any, error) {
		return []backup.Status{{Domain: "db", State: backup.Claiming}, {Domain: "mail", State: backup.Ready}}, nil
	})
	control.Handle(mux, "GET /conflicts", func(*http.Request) (any, error) { return []backup.Conflict{}, nil })
	control.Handle(mux, "POST /resolve", func(r *http.Request) (any, error) {
		var a protector.Resolution
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			return nil, err
		}
		*said = append(*said, a)
		d := known[a.Domain]
		if a.Domain == "late" {
			return nil, errors.New("late waits for no decision here any more (running)")
		}
		d.Word = a.Word
		return d, nil
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return said
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "xlft.toml")
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+dir+"\"\nstate_dir = \""+dir+"\"\n[arbiter]\ntype = \"none\"\naccept_split_brain = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	since := time.Now().Add(-time.Minute)
	silent := []xlft.Answer{{Host: "beta", Error: "i/o timeout"}}
	waits := xlft.Decision{Host: xlft.Primary, Peer: "beta", State: "blocked", Since: since, Generation: 3, Epoch: 7, LastAck: since, Arbiter: "fence", Said: "fence beta: no route to host", Answers: silent}
	named := func(d xlft.Decision, name string) xlft.Decision { d.Domain = name; return d }
	idle := xlft.Decision{Domain: "idle", NotNow: "its protection is protected"}
	// A protector is asked without the domain's name: it has one.
	protectors := map[string]*[]protector.Resolution{}
	for name, d := range map[string]xlft.Decision{"web1": waits, "idle": idle, "handed": {Host: xlft.Primary, Peer: "beta", State: "blocked", Handed: true, Shared: true, Answers: silent}} {
		d = named(d, name)
		protectors[name] = resolves(t, control.Socket(dir, name), map[string]xlft.Decision{"": d, name: d})
	}
	replica := waits
	replica.Host, replica.State, replica.Peer = xlft.Backup, "claiming", "alpha"
	replica.Answers = []xlft.Answer{{Host: "alpha", Role: wire.RoleRunning, Generation: 3, Lives: true}}
	late := replica
	late.Answers = silent
	receiver := resolves(t, control.Socket(dir, control.Receiver), map[string]xlft.Decision{
		"db": named(replica, "db"), "late": named(late, "late"),
		"open":    {Domain: "open", Host: xlft.Backup, Peer: "alpha", Generation: 3, Open: true, Said: "this host lost its power"},
		"unknown": {Domain: "unknown", NotNow: "this host holds no copy of it"}, "idle": idle, "dead": {Domain: "dead", NotNow: "this host holds no copy of it"},
	})
	if err := store.Dir(dir).Save("dead", xlft.Ownership{Role: xlft.HostPrimary, Exposed: true, Peer: "beta"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args      string
		out       []string
		complaint string
		said      *[]protector.Resolution
		word      xlft.Word
	}{
		{"web1", []string{"Waits here: blocked: it is here, and its output is held", ", 1m0s ago", "Generation: 3", "Newest checkpoint: 7, acked", "Last word: fence beta: no route to host",
			"Asked now: beta gives no answer: i/o timeout", "--peer-is-off: beta has no power. It runs on here", "--take-over: web1 does not run on beta", "--give-up: the copy of web1 here is destroyed"}, "", protectors["web1"], ""},
		{"web1 --peer-is-off", []string{"--peer-is-off: beta has no power"}, "ft-resolve: nobody can be asked back here: --yes", protectors["web1"], ""},
		{"web1 --peer-is-off --yes", []string{"web1: runs on here, unprotected"}, "", protectors["web1"], xlft.PeerIsOff},
		{"web1 --give-up -y", []string{"web1: given up: the copy here is destroyed"}, "", protectors["web1"], xlft.GiveUp},
		{"web1 --give-up --take-over --yes", nil, "if any flags in the group [peer-is-off take-over give-up] are set none of the others can be", protectors["web1"], ""},
		{"web1 --take-over --json", nil, "ft-resolve: nobody can be asked back here", protectors["web1"], ""},
		{"web1 --take-over --json --yes", []string{`"word": "take-over"`, `"answers": [ { "host": "beta", "error": "i/o timeout", "lives": false } ]`}, "", protectors["web1"], xlft.TakeOver},
		{"handed", []string{"it was handed over to beta, and may have run there", "Generation: not known: its record is lost", "--take-over: refused: the disks of handed are on storage that both"}, "", protectors["handed"], ""},
		{"handed --take-over --yes", nil, "ft-resolve: the disks of handed are on storage that both hosts write to", protectors["handed"], ""},
		{"idle", nil, "ft-resolve: idle waits for no decision here: its protection is protected", protectors["idle"], ""},
		{"idle --give-up --yes", nil, "ft-resolve: idle waits for no decision here", protectors["idle"], ""},
		{"idle --json", []string{`"not_now": "its protection is protected"`}, "ft-resolve: idle waits for no decision here", protectors["idle"], ""},
		{"db", []string{"Waits here: claiming: its copy is here, and does not run", "Asked now: alpha answers that it has it, in generation 3", `--take-over: refused: alpha answers that it has db, in generation 3: decide there: "xl ft-resolve db" on alpha`}, "", receiver, ""},
		{"db --take-over --yes", nil, "ft-resolve: alpha answers that it has db", receiver, ""},
		{"db --give-up --yes", []string{"db: given up"}, "", receiver, xlft.GiveUp},
		{"late --peer-is-off --yes", nil, "ft-resolve: late waits for no decision here any more (running)", receiver, xlft.PeerIsOff},
		{"open", []string{"no copy of it is here; whether it ran here is open", "--give-up: it counts as never having run here", "--peer-is-off: refused: the question is not whether alpha is off"}, "", receiver, ""},
		{"unknown", nil, "ft-resolve: unknown waits for no decision here: this host holds no copy of it", receiver, ""},
		{"dead --take-over --yes", nil, `ft-resolve: dead: its protector, which would take the word, does not run: if "xl list" shows the domain here, "systemctl start xlft@dead.service" first; if not, decide on beta`, receiver, ""},
	} {
		*c.said = nil
		out, complaint := run(t, append([]string{"--config", conf, "ft-resolve"}, strings.Fields(c.args)...)...)
		got := strings.Join(strings.Fields(out), " ")
		for _, want := range c.out {
			if !strings.Contains(got, want) {
				t.Errorf("ft-resolve %s prints\n%s\nwithout %q", c.args, out, want)
			}
		}
		if !strings.HasPrefix(complaint, c.complaint) || (complaint == "") != (c.complaint == "") {
			t.Errorf("ft-resolve %s complains\n%s", c.args, complaint)
		}
		if said := *c.said; c.word == "" && len(said) > 0 || c.word != "" && (len(said) != 1 || said[0].Word != c.word || said[0].By == "" || said[0].Domain != strings.Fields(c.args)[0]) {
			t.Errorf("ft-resolve %s said %+v, want %q", c.args, said, c.word)
		}
	}
	out, _ := run(t, "__complete", "--config", conf, "ft-resolve", "")
	for _, want := range []string{"web1", "db"} {
		if !strings.Contains(out, want+"\n") || strings.Contains(out, "mail") {
			t.Errorf("completion: %s", out)
		}
	}
}

// Nothing is done until the domain's name was typed.
func TestConfirm(t *testing.T) {
	for typed, ok := range map[string]bool{"web1\n": true, " web1 \n": true, "web1": true, "yes\n": false, "\n": false, "": false, "web2\n": false} {
		var out strings.Builder
		if err := confirm(strings.NewReader(typed), &out, "web1"); (err == nil) != ok {
			t.Errorf("%q: %v", typed, err)
		}
	}
}

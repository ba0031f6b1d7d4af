package overview

import (
	"net"
	"net/http"
	"os"
	"testing"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/steward"
	"xlft/xlft/internal/store"
	"xlft/xlft/primary"
)

// daemon answers on a socket as a protector or a receiver does.
func daemon(t *testing.T, path, pattern string, answer any) {
	t.Helper()
	daemons(t, path, map[string]any{pattern: answer})
}

func daemons(t *testing.T, path string, answers map[string]any) {
	t.Helper()
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, answer := range answers {
		control.Handle(mux, pattern, func(*http.Request) (any, error) { return answer, nil })
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
}

func TestRows(t *testing.T) {
	run, state := t.TempDir(), t.TempDir()
	daemon(t, control.Socket(run, "web1"), "GET /status", primary.Status{Domain: "web1", Peer: "beta", State: primary.Protected, Protected: true, Epoch: 7, Generation: 2})
	daemon(t, control.Socket(run, "syncs"), "GET /status", primary.Status{Domain: "syncs", Peer: "beta", State: primary.Syncing})
	daemons(t, control.Socket(run, control.Receiver), map[string]any{
		"GET /replicas": []backup.Status{
			{Domain: "db", Peer: "beta", State: backup.Ready, Epoch: 4, Generation: 1},
			{Domain: "claims", Peer: "beta", State: backup.Claiming},
			{Domain: "mail", Peer: "beta", State: backup.Syncing},
		},
		"GET /conflicts": []backup.Conflict{{Domain: "split", Peer: "beta"}},
		"GET /unprotected": []steward.Status{
			{Domain: "lone"}, {Domain: "left", Stopped: true}, {Domain: "web1"}, {Domain: "tookbare"}, {Domain: "split"},
		},
	})
	daemon(t, control.Socket(run, "both"), "GET /status", primary.Status{Domain: "both", Peer: "beta", State: primary.Connecting, SplitBrain: true})
	// A daemon that was stopped takes connections and answers nothing.
	if l, err := net.Listen("unix", control.Socket(run, "hangs")); err != nil {
		t.Fatal(err)
	} else {
		defer l.Close()
	}
	for domain, o := range map[string]xlft.Ownership{
		"web1":     {Role: xlft.HostPrimary, Exposed: true, Peer: "beta"}, // its daemon's status counts
		"dead":     {Role: xlft.HostPrimary, Exposed: true, Peer: "beta", Generation: 3},
		"idle":     {Role: xlft.HostPrimary, Peer: "beta"}, // was protected once
		"lost":     {Role: xlft.HostFailed, Peer: "beta"},
		"moved":    {Role: xlft.HostYielded, Peer: "beta"},
		"owned":    {Role: xlft.HostOwner, Peer: "beta"},
		"split":    {Role: xlft.HostOwner, Peer: "beta"},
		"tookbare": {Role: xlft.HostOwner, Peer: "beta"},
		"took":     {Role: xlft.HostOwner, Peer: "beta"},
		"taking":   {Role: xlft.HostOwner, Pending: true, Peer: "beta"},
	} {
		if err := store.Dir(state).Save(domain, o); err != nil {
			t.Fatal(err)
		}
	}
	for _, domain := range []string{"boots", "owned", "web1", "moved", "dead", "hangs"} {
		if err := os.WriteFile(protector.RestartFile(run, domain), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := Rows(t.Context(), run, state)
	if err != nil {
		t.Fatal(err)
	}
	type brief struct {
		domain    string
		role      Role
		state     string
		protected bool
	}
	want := []brief{
		{"boots", Primary, StartingAgain, false},
		{"both", Primary, SplitBrain, false},
		{"claims", Backup, "claiming", false},
		{"db", Backup, "ready", true},
		{"dead", Primary, ProtectorDead, false},
		{"hangs", Primary, Unresponsive, false},
		{"left", None, StoppedHere, false},
		{"lone", None, Unprotected, false},
		{"lost", Owner, Failed, false},
		{"mail", Backup, "syncing", false},
		{"moved", Yielded, GivenUp, false},
		{"owned", Owner, StartingAgain, false},
		{"split", Owner, SplitBrain, false},
		{"syncs", Primary, "syncing", false},
		{"taking", Owner, TakingOver, false},
		{"took", Owner, TookOver, false},
		{"tookbare", Owner, Unprotected, false},
		{"web1", Primary, "protected", true},
	}
	if len(rows) != len(want) {
		t.Fatalf("%d rows, want %d: %+v", len(rows), len(want), rows)
	}
	for i, r := range rows {
		if got := (brief{r.Domain, r.Role, r.State, r.Protected}); got != want[i] {
			t.Errorf("row %d is %+v, want %+v", i, got, want[i])
		}
	}
}

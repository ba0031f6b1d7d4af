package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/config"
	"xlft/xlft/internal/store"
	"xlft/xlft/wire"
)

// ft-list --all shows this host and its peers; one that gives no answer is named.
func TestListAll(t *testing.T) {
	dir := t.TempDir()
	identity := func(name string) *wire.Identity {
		path := filepath.Join(dir, name)
		if _, err := wire.GenerateIdentity(path, name, false); err != nil {
			t.Fatal(err)
		}
		id, err := wire.LoadIdentity(path)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	here, beta, gamma := identity("alpha"), identity("beta"), identity("gamma")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Beta is a host with a record, behind a receiver as it ships.
	state := filepath.Join(dir, "beta-state")
	if err := store.Dir(state).Save("web1", xlft.Ownership{Generation: 4, Role: xlft.HostOwner, Peer: "alpha"}); err != nil {
		t.Fatal(err)
	}
	its := &config.Config{Name: "its own name", StateDir: state, RunDir: filepath.Join(dir, "beta-run")}
	r := &backup.Receiver{Software: "test", Log: zap.NewNop(), PeerName: func(net.Conn) string { return "alpha" }, List: lister(func() *config.Config { return its }, askXen)}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		r.Serve(ctx, wire.NewListener(l, beta.TLSConfig(func(f wire.Fingerprint) bool { return f == here.Fingerprint })))
	}()
	defer func() { cancel(); <-served }()

	conf := filepath.Join(dir, "xlft.toml")
	text := "[host]\nname = \"alpha\"\nrun_dir = \"" + dir + "/run\"\nstate_dir = \"" + dir + "/state\"\nidentity = \"" + dir + "/alpha\"\n[arbiter]\ntype = \"manual\"\n" +
		"[peer.beta]\naddress = \"" + l.Addr().String() + "\"\nfingerprint = \"" + beta.Fingerprint.String() + "\"\n" +
		"[peer.gamma]\naddress = \"127.0.0.1:1\"\nfingerprint = \"" + gamma.Fingerprint.String() + "\"\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, complaint := run(t, "--config", conf, "ft-list", "--all")
	for _, want := range []string{"alpha 0 -", "beta 0 web1 owner alpha took-over 0 4", "gamma ? -"} {
		if !strings.Contains(squeeze(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if !strings.Contains(complaint, "gamma gives no answer: ") || strings.Contains(complaint, "beta gives") {
		t.Errorf("it complains: %s", complaint)
	}
	out, _ = run(t, "--config", conf, "ft-list", "--all", "--json")
	for _, want := range []string{`"host": "beta"`, `"state": "took-over"`, `"error": "open query connection`, `"domains": []`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

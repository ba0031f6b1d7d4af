package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/steward"
)

// A disarm lasts 168 hours at most, also if the clock is set back meanwhile.
func TestDisarmUnderAClockThatIsSetBack(t *testing.T) {
	dir := t.TempDir()
	protector.MarkAgain(dir, "web1", time.Now().Add(10*365*24*time.Hour)) // noted while the clock was wrong by ten years
	if stopped, until := protector.Stopped(dir, "web1", "boot/7"); stopped {
		t.Errorf("unprotected until %v", until)
	}
}

// "All domains" are also those that the steward is about to protect: they would be protected in
// the middle of the works.
func TestDisarmTakesTheUnprotectedToo(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "xlft.toml")
	if err := os.WriteFile(conf, []byte("[host]\nrun_dir = \""+dir+"\"\nstate_dir = \""+dir+"\"\n[arbiter]\ntype = \"manual\"\n[domain.web2]\nprotect = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(control.Socket(dir, control.Receiver))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for _, what := range []string{"replicas", "conflicts", "paths"} {
		control.Handle(mux, "GET /"+what, func(*http.Request) (any, error) { return []int{}, nil })
	}
	control.Handle(mux, "GET /unprotected", func(*http.Request) (any, error) {
		return []steward.Status{{Domain: "web2", Since: time.Now(), Trying: "beta"}}, nil
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	defer srv.Close()
	if _, said := run(t, "--config", conf, "ft-disarm", "--for", "30m"); !strings.Contains(said, "web2") {
		t.Errorf("web2, which is being protected now, is left out: %s", said)
	}
}

// A domain that reboots in the time stays as it is: the works on the network go on.
func TestDisarmOutlastsAReboot(t *testing.T) {
	dir := t.TempDir()
	if err := disarmOne(t.Context(), dir, "web1", time.Now().Add(time.Hour), func() error { return protector.MarkStopped(dir, "web1", "boot/7") }); err != nil {
		t.Fatal(err)
	}
	s := &stewarded{config: confOf(dir)}
	if stopped, _ := s.Stopped(steward.Domain{Name: "web1", Instance: "boot/8"}); !stopped {
		t.Error("the guest rebooted by itself, and is protected again 3 s later, in the middle of the works")
	}
}

func confOf(dir string) func() *config.Config {
	return func() *config.Config { return &config.Config{RunDir: dir, StateDir: dir} }
}

// A disarm that is cut off before it ended anything leaves nothing behind that would undo a
// later word of an operator's ("systemctl stop xlft@DOMAIN").
func TestDisarmCutOffLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // Ctrl-C while an earlier domain of the list was being stopped
	at := time.Now().Add(1100 * time.Millisecond)
	if err := disarmOne(ctx, dir, "web2", at, func() error { return ctx.Err() }); err == nil {
		t.Fatal("no error")
	}
	time.Sleep(1200 * time.Millisecond)                                  // the time of the disarm that never was goes by; web2 is protected all along
	if err := protector.MarkStopped(dir, "web2", "boot/7"); err != nil { // systemctl stop xlft@web2
		t.Fatal(err)
	}
	if stopped, _ := protector.Stopped(dir, "web2", "boot/7"); !stopped {
		t.Error("the steward begins the protection again that an operator just ended")
	}
}

// A disarm that fails leaves what an earlier one promised.
func TestDisarmFailsBesideAnEarlierOne(t *testing.T) {
	dir := t.TempDir()
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	if err := disarmOne(t.Context(), dir, "web1", at, func() error { return protector.MarkStopped(dir, "web1", "boot/7") }); err != nil {
		t.Fatal(err)
	}
	disarmOne(t.Context(), dir, "web1", at.Add(time.Hour), func() error { return errors.New("reach systemd: refused") })
	if stopped, until := protector.Stopped(dir, "web1", "boot/7"); !stopped || !until.Equal(at) {
		t.Errorf("stopped %v until %v, and the operator was told %v", stopped, until, at)
	}
}

// A protector that is starting removes the marks: the disarm's end is noted all the same.
func TestDisarmWhileAProtectorStarts(t *testing.T) {
	dir := t.TempDir()
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	err := disarmOne(t.Context(), dir, "web1", at, func() error {
		protector.MarkStopped(dir, "web1", "")              // protect.go:33, of a protector that is just starting
		return protector.MarkStopped(dir, "web1", "boot/7") // its own noteStop, or ft-stop's leave
	})
	if stopped, until := protector.Stopped(dir, "web1", "boot/7"); err != nil || !stopped || !until.Equal(at) {
		t.Errorf("%v, stopped %v until %v: for good, and the operator was told %v", err, stopped, until, at)
	}
}

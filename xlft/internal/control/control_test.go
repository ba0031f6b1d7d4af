package control_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"xlft/xlft/internal/control"
)

func TestControl(t *testing.T) {
	dir := t.TempDir()
	path := control.Socket(dir, "web 1/../x")
	if filepath.Dir(path) != dir {
		t.Fatalf("socket at %s", path)
	}
	if err := control.Call(t.Context(), path, "GET", "/status", nil, nil); !errors.Is(err, control.ErrDown) {
		t.Errorf("nobody there: %v", err)
	}
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.Listen(path); err == nil {
		t.Error("a second listener took a live socket")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	mux := http.NewServeMux()
	control.Handle(mux, "GET /status", func(*http.Request) (any, error) { return map[string]int{"epoch": 7}, nil })
	control.Handle(mux, "POST /stop", func(*http.Request) (any, error) { return nil, errors.New("not now") })
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	defer srv.Close()
	var out struct{ Epoch int }
	if err := control.Call(t.Context(), path, "GET", "/status", nil, &out); err != nil || out.Epoch != 7 {
		t.Errorf("%+v, %v", out, err)
	}
	if err := control.Call(t.Context(), path, "POST", "/stop", nil, nil); err == nil || err.Error() != "not now" {
		t.Errorf("a refusal: %v", err)
	}
	names, err := control.Names(dir)
	if err != nil || len(names) != 1 || names[0] != "web 1/../x" {
		t.Errorf("names %q, %v", names, err)
	}
}

// What a crash left behind is replaced.
func TestStaleSocket(t *testing.T) {
	path := control.Socket(t.TempDir(), "web1")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

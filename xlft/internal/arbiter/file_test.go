package arbiter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/config"
)

// shared is a directory as an operator makes it.
func shared(t *testing.T, word string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shared")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, registerFile), []byte(word+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// claims are the files in a directory but the one that names it.
func claims(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Name() != registerFile {
			names = append(names, e.Name())
		}
	}
	return names
}

// under reports whether a call has not returned that nobody waits for.
func (r *File) under() bool {
	runtime.Gosched()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.late > 0
}

// files is a world with a directory of this host in the place of a shared one.
func files(t *testing.T) *world {
	dir, another := shared(t, "here"), shared(t, "elsewhere")
	w := &world{names: dir, timeout: time.Second, off: map[xlft.Side]bool{}, restart: func(*testing.T) {}}
	lost := func(path string) error { return &os.PathError{Op: "link", Path: path, Err: syscall.EIO} }
	w.fresh = func(side xlft.Side) xlft.Arbiter {
		f := &File{File: config.File{Directory: dir, Timeout: w.timeout}, local: true}
		f.sys.read = func(path string) ([]byte, error) {
			switch isClaim := strings.HasSuffix(path, ".claim"); {
			case w.is() == deaf:
				return nil, &os.PathError{Op: "open", Path: path, Err: syscall.ESTALE}
			case w.is() == liar: // something else is mounted there
				path = filepath.Join(another, filepath.Base(path))
			case w.is() == mute && isClaim:
				return nil, lost(path)
			}
			return os.ReadFile(path)
		}
		f.sys.link = func(from, to string) error {
			switch w.is() {
			case stuck:
				for t.Context().Err() == nil && w.is() == stuck {
					time.Sleep(time.Millisecond)
				}
				return lost(to)
			case mute:
				os.Link(from, to)
				return lost(to)
			}
			return os.Link(from, to)
		}
		a := &Ledger{Asker: Asker{Log: zap.NewNop()}, Kind: "file", Host: string(side), Register: f}
		if w.is() == none {
			if _, err := a.Identity(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		return a
	}
	w.settle = func() {
		for _, a := range w.arbiters {
			for a.(*Ledger).Register.(*File).under() {
			}
		}
	}
	w.begin()
	return w
}

// What goes wrong with a directory, in each call that there is: an error that names it, or
// what is there; and nothing is won that is not on stable storage.
func TestFileFails(t *testing.T) {
	t.Parallel()
	k := Key{"web 1/x", "u", 3}
	fail := func(path string, why error) error { return &os.PathError{Op: "call", Path: path, Err: why} }
	for _, c := range []struct {
		name string
		sys  calls
		want string // in the error; "": there is none
		left bool   // the claim is there afterwards
	}{
		{"nothing", calls{}, "", true},
		{"link made, and said to have failed", calls{link: func(from, to string) error { os.Link(from, to); return fail(to, syscall.EIO) }}, "", true},
		{"link made, and said to be there", calls{link: func(from, to string) error { os.Link(from, to); return fail(to, syscall.EEXIST) }}, "", true},
		{"link not made", calls{link: func(_, to string) error { return fail(to, syscall.EIO) }}, "input/output error", false},
		{"link there, and not to be seen", calls{link: func(_, to string) error { return fail(to, syscall.EEXIST) }}, "no such file", false},
		{"no links", calls{link: func(_, to string) error { return fail(to, syscall.EPERM) }}, "operation not permitted", false},
		{"stale", calls{link: func(_, to string) error { return fail(to, syscall.ESTALE) }}, "stale", false},
		{"full", calls{write: func(f *os.File, _ []byte) error { return fail(f.Name(), syscall.ENOSPC) }}, "no space left", false},
		{"full, as is said at the sync", calls{sync: func(f *os.File) error { return fail(f.Name(), syscall.ENOSPC) }}, "no space left", false},
		{"read-only", calls{write: func(f *os.File, _ []byte) error { return fail(f.Name(), syscall.EROFS) }}, "read-only", false},
		{"directory not synced", calls{sync: func(f *os.File) error {
			if st, err := f.Stat(); err != nil || st.IsDir() {
				return fail(f.Name(), syscall.EIO)
			}
			return f.Sync()
		}}, "input/output error", true},
		{"not to be read", calls{read: func(path string) ([]byte, error) {
			if strings.HasSuffix(path, ".claim") {
				return nil, fail(path, syscall.EIO)
			}
			return os.ReadFile(path)
		}}, "input/output error", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := shared(t, "here")
			f := &File{File: config.File{Directory: dir, Timeout: time.Minute}, local: true, sys: c.sys}
			there, id, err := f.First(t.Context(), k, []byte("mine"))
			if (err == nil) != (c.want == "") || err == nil && (string(there) != "mine" || id != "here") || err != nil && (there != nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir)) {
				t.Errorf("%q, %q, %v", there, id, err)
			}
			if left := strings.Join(claims(t, dir), " "); (left != "") != c.left || c.left && left != "web%201%2Fx,u,3.claim" {
				t.Errorf("the directory has %q", left)
			}
			if _, err := f.Probe(t.Context()); (err == nil) != (c.want == "" && !strings.Contains(c.name, "said")) && c.name != "not to be read" {
				t.Errorf("check: %v", err)
			}
			f.sys = calls{}
			there, _, err = f.First(t.Context(), k, []byte("later"))
			if want := map[bool]string{true: "mine", false: "later"}[c.left]; string(there) != want || err != nil {
				t.Errorf("again: %q, %v, want %q", there, err, want)
			}
		})
	}
}

// A directory that nothing is mounted on, or that only this host has, is no register.
func TestFileRegister(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		word, want string
		local      bool
	}{
		"named":            {"a word", "", true},
		"not shared":       {"a word", "which the other host can't see", false},
		"not mounted":      {"-", "no such file or directory. If the shared directory is mounted and new, name it once", true},
		"empty":            {"", "holds no word", true},
		"more than a word": {"a\nb", "holds no word", true},
	} {
		dir := shared(t, c.word)
		if c.word == "-" {
			os.Remove(filepath.Join(dir, registerFile))
		}
		f := &File{File: config.File{Directory: dir, Timeout: time.Minute}, local: c.local}
		_, perr := f.Probe(t.Context())
		_, _, ferr := f.First(t.Context(), Key{"web1", "u", 3}, []byte("mine"))
		for _, err := range []error{perr, ferr} {
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir)) {
				t.Errorf("%s: %v, want %q", what, err, c.want)
			}
		}
		if c.want != "" && len(claims(t, dir)) > 0 {
			t.Errorf("%s: left %v", what, claims(t, dir))
		}
	}
}

// A server that does not answer holds up one call, for as long as the timeout: the next
// ends at once, and all works when it answers again.
func TestFileHangs(t *testing.T) {
	t.Parallel()
	answer, hangs := make(chan struct{}), make(chan struct{}, 1)
	f := &File{File: config.File{Directory: shared(t, "here"), Timeout: 100 * time.Millisecond}, local: true}
	f.sys.sync = func(d *os.File) error {
		select {
		case hangs <- struct{}{}:
		default:
		}
		<-answer
		return d.Sync()
	}
	if there, _, err := f.First(t.Context(), Key{"web1", "u", 3}, []byte("mine")); there != nil || err == nil || !strings.Contains(err.Error(), f.Directory+" does not answer within") {
		t.Errorf("%q, %v", there, err)
	}
	if _, err := f.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "a call has not returned for") {
		t.Errorf("%v", err)
	}
	close(answer)
	f.Timeout = time.Minute
	for f.under() {
	}
	if there, _, err := f.First(t.Context(), Key{"web1", "u", 3}, []byte("later")); string(there) != "mine" || err != nil { // what hung came through
		t.Errorf("%q, %v", there, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	answer, hangs = make(chan struct{}), make(chan struct{}, 1)
	defer func() {
		close(answer)
		for f.under() {
		}
	}()
	go func() { <-hangs; cancel() }()
	if there, _, err := f.First(ctx, Key{"web1", "u", 4}, []byte("mine")); there != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %q, %v", there, err)
	}
}

// Hosts are processes: of several that write the same claim at once all read the same one.
func TestFileProcesses(t *testing.T) {
	if dir := os.Getenv("XLFT_TEST_CLAIMS"); dir != "" {
		f := &File{File: config.File{Directory: dir, Timeout: time.Minute}, local: true}
		for in := bufio.NewScanner(os.Stdin); in.Scan(); { // each line is a round
			there, _, err := f.First(context.Background(), Key{"web1", in.Text(), 3}, fmt.Append(nil, os.Getpid()))
			fmt.Println(string(there), err)
		}
		os.Exit(0)
	}
	t.Parallel()
	var ins []io.Writer
	var outs []*bufio.Scanner
	dir := shared(t, "here")
	for range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFileProcesses$")
		cmd.Env = append(os.Environ(), "XLFT_TEST_CLAIMS="+dir)
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer in.Close()
		ins, outs = append(ins, in), append(outs, bufio.NewScanner(out))
	}
	winners := map[string]int{}
	for round := range 300 {
		for _, in := range ins {
			fmt.Fprintln(in, round)
		}
		var first string
		for i, out := range outs {
			if !out.Scan() || !strings.HasSuffix(out.Text(), " <nil>") || i > 0 && out.Text() != first {
				t.Fatalf("round %d: process %d read %q, and process 0 %q", round, i, out.Text(), first)
			}
			first = out.Text()
		}
		winners[first]++
	}
	t.Log("won:", winners)
}

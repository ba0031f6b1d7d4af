package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xlft/tests/lab/probe"
)

func TestFioResult(t *testing.T) {
	const report = `{ "jobs" : [
		{ "error" : 0, "read" : { "io_bytes" : 100 }, "write" : { "io_bytes" : 200 } },
		{ "error" : 84, "total_err" : 4, "read" : { "io_bytes" : 1 }, "write" : { "io_bytes" : 2 } } ] }`
	for _, c := range []struct {
		name           string
		status         int
		stdout, stderr string
		want           probe.FioResult
	}{
		{"errors counted", 0, report, "crc32c: verify failed\nmore\n",
			probe.FioResult{Code: 84, Errors: 4, Read: 101, Written: 202, Complaint: "crc32c: verify failed"}},
		{"words before", 1, "note: x\n" + report, "", probe.FioResult{Status: 1, Code: 84, Errors: 4, Read: 101, Written: 202}},
		{"bad arguments", 1, "", "Bad option <x>\n", probe.FioResult{Status: 1, Complaint: "Bad option <x>"}},
		{"no report", 0, "", "", probe.FioResult{Status: -1, Complaint: "no report: unexpected end of JSON input"}},
	} {
		if got := fioResult(c.status, []byte(c.stdout), []byte(c.stderr)); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestLimited(t *testing.T) {
	l := limited{most: 5}
	for range 3 {
		if n, err := fmt.Fprint(&l, "abc"); n != 3 || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	if got := l.String(); got != "abcab" {
		t.Errorf("kept %q", got)
	}
}

// The guest has the same program.
func TestSQLite(t *testing.T) {
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("no sqlite3 here: ", err)
	}
	file := filepath.Join(t.TempDir(), "rows.db")
	open := func() *sqlite {
		s, err := startSQLite(program, file)
		if err == nil {
			_, err = s.do(schema)
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	d := dataDisk{db: open()}
	var want probe.Rows
	for n := uint64(1); n <= 20; n++ {
		if err := d.commit(n); err != nil {
			t.Fatal(err)
		}
		want = probe.Rows{Count: n, Max: n, Sum: probe.FoldRow(want.Sum, n, probe.RowBody(n)), Total: n}
	}
	for range 2 { // a complaint is about one statement, and takes all of it back
		if err := d.commit(20); err == nil || !strings.Contains(err.Error(), "UNIQUE") {
			t.Errorf("row 20 twice: %v", err)
		}
	}
	d.db.kill()
	if _, err := d.db.do("SELECT 1;"); err == nil {
		t.Error("a killed program answers")
	}
	d.db = open()
	lines, err := d.db.do("SELECT n || ' ' || body FROM rows ORDER BY n; SELECT coalesce(sum(rows), 0) FROM total;")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sumRows(lines); err != nil || got != want {
		t.Errorf("rows: %+v, %v; want %+v", got, err, want)
	}
	if got, err := d.sql("PRAGMA integrity_check;"); got != "ok" || err != nil {
		t.Errorf("integrity: %q, %v", got, err)
	}
	d.closeDB()

	if err := os.WriteFile(file, bytes.Repeat([]byte("junk"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := startSQLite(program, file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.kill()
	_, err = s.do(schema)
	var why complaint
	if !errors.As(err, &why) || !strings.Contains(string(why), "not a database") {
		t.Errorf("a file of junk: %v, want a complaint that it is not a database", err)
	}
}

package probe_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"xlft/tests/lab/probe"
)

// keep answers commits as the guest does, until it has made so many; then it hangs up without an answer.
func keep(conn net.Conn, n int) {
	defer conn.Close()
	for in := bufio.NewScanner(conn); in.Scan(); {
		if n--; n < 0 {
			return
		}
		fmt.Fprintln(conn, strings.TrimPrefix(in.Text(), "commit "))
	}
}

// rows is what the guest says that has rows 1 to n, except those left out.
func rows(n uint64, missing ...uint64) probe.Rows {
	out := map[uint64]bool{}
	for _, m := range missing {
		out[m] = true
	}
	var r probe.Rows
	for i := uint64(1); i <= n; i++ {
		if !out[i] {
			r = probe.Rows{Count: r.Count + 1, Max: i, Sum: probe.FoldRow(r.Sum, i, probe.RowBody(i)), Total: r.Total + 1}
		}
	}
	return r
}

// broken returns a ledger with so many acknowledged commits and one more that got no answer.
func broken(t *testing.T, n int) *probe.Ledger {
	t.Helper()
	ours, theirs := net.Pipe()
	go keep(theirs, n)
	l := new(probe.Ledger)
	if err := l.Run(t.Context(), probe.NewClient(ours)); err == nil {
		t.Fatal("the ledger does not notice that the guest hung up")
	}
	if l.Held() != uint64(n) {
		t.Fatalf("%d commits held, want %d", l.Held(), n)
	}
	return l
}

func TestLedger(t *testing.T) {
	half := rows(11)
	half.Total--
	other := rows(10)
	other.Sum++
	for name, c := range map[string]struct {
		says probe.Rows
		want string // in the error; empty for none
	}{
		"all":                         {rows(10), ""},
		"and the one in flight":       {rows(11), ""},
		"nothing":                     {rows(0), "rows 1 to 10 are missing"},
		"the last lost":               {rows(9), "rows 10 to 10 are missing"},
		"one lost":                    {rows(10, 4), "1 rows are missing before row 10"},
		"one lost, one in flight":     {rows(11, 10), "1 rows are missing before row 11"},
		"one never asked for":         {rows(12), "row 12 was never asked for"},
		"half a transaction":          {half, "by half"},
		"another row in place of one": {other, "checksum"},
	} {
		err := broken(t, 10).Judge(c.says)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.Is(err, probe.ErrLedger) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want one with %q", name, err, c.want)
		}
	}
}

// A row that was seen once must not be lost, even if its commit was never acknowledged.
func TestLedgerGoesOn(t *testing.T) {
	l := broken(t, 3)
	if err := l.Judge(rows(4)); err != nil {
		t.Fatal(err)
	}
	if err := l.Judge(rows(3)); !errors.Is(err, probe.ErrLedger) {
		t.Errorf("row 4 was seen and is lost: %v", err)
	}
	ours, theirs := net.Pipe()
	go keep(theirs, 1)
	if err := l.Commit(probe.NewClient(ours)); err != nil {
		t.Fatal(err)
	}
	if err := l.Judge(rows(5)); err != nil {
		t.Error(err)
	}
}

func TestLedgerStops(t *testing.T) {
	ours, theirs := net.Pipe()
	go keep(theirs, 1<<30)
	ctx, cancel := context.WithCancel(t.Context())
	var l probe.Ledger
	ended := make(chan error)
	go func() { ended <- l.Run(ctx, probe.NewClient(ours)) }()
	for l.Held() < 5 {
		runtime.Gosched()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := l.Judge(rows(l.Held())); err != nil {
		t.Error(err)
	}
}

func TestDataAnswers(t *testing.T) {
	ours, theirs := net.Pipe()
	said := map[string]string{
		"fsck":            "4 /dev/xvda: 11/16384 files, 9513/65536 blocks",
		"fio start --x y": "ok",
		"fio status":      "running 4096 8192",
		"fio wait":        "0 84 2 4096 8192 crc32c: verify failed at file",
		"integrity":       "row 1 missing from index",
		"rows":            "1 2 3 4",
	}
	go func() {
		for in := bufio.NewScanner(theirs); in.Scan(); {
			fmt.Fprintln(theirs, said[in.Text()])
		}
	}()
	c := probe.NewClient(ours)
	fsck, err := c.Fsck()
	want := probe.Fsck{Status: 4, Last: "/dev/xvda: 11/16384 files, 9513/65536 blocks"}
	if err != nil || fsck != want || !errors.Is(fsck.Err(), probe.ErrUnsound) {
		t.Errorf("fsck: %+v, %v", fsck, err)
	}
	if err := c.FioStart("--x", "y"); err != nil {
		t.Error(err)
	}
	progress, err := c.FioStatus()
	if want := (probe.FioProgress{Running: true, Read: 4096, Written: 8192}); err != nil || progress != want {
		t.Errorf("fio status: %+v, %v", progress, err)
	}
	fio, err := c.FioWait()
	wantFio := probe.FioResult{Code: 84, Errors: 2, Read: 4096, Written: 8192, Complaint: "crc32c: verify failed at file"}
	if err != nil || fio != wantFio || !errors.Is(fio.Err(), probe.ErrUnsound) {
		t.Errorf("fio wait: %+v, %v", fio, err)
	}
	if err := c.Integrity(); !errors.Is(err, probe.ErrUnsound) {
		t.Errorf("integrity: %v", err)
	}
	r, err := c.Rows()
	if want := (probe.Rows{Count: 1, Max: 2, Sum: 3, Total: 4}); err != nil || r != want {
		t.Errorf("rows: %+v, %v", r, err)
	}
}

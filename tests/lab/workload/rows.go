package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"xlft/tests/lab/probe"
)

const database = probe.DataDir + "/rows.db"

// schema has two tables that one transaction changes together: half of one shows as two that disagree.
const schema = `PRAGMA synchronous=FULL;
PRAGMA temp_store=MEMORY;
CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS total (id INTEGER PRIMARY KEY, rows INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS counted AFTER INSERT ON rows BEGIN
INSERT INTO total VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET rows = rows + 1;
END;`

// commit inserts row n. A statement outside of BEGIN and COMMIT is a transaction of its own: the program goes on to the
// next line once it is committed, and it is taken back as a whole if it fails.
func (d *dataDisk) commit(n uint64) error {
	db, err := d.openDB()
	if err == nil {
		_, err = db.do(fmt.Sprintf("INSERT INTO rows VALUES (%d, '%s');", n, probe.RowBody(n)))
	}
	return err
}

func (d *dataDisk) rows() (probe.Rows, error) {
	d.forget()
	db, err := d.openDB()
	if err != nil {
		return probe.Rows{}, err
	}
	lines, err := db.do("SELECT n || ' ' || body FROM rows ORDER BY n; SELECT coalesce(sum(rows), 0) FROM total;")
	if err != nil {
		return probe.Rows{}, err
	}
	return sumRows(lines)
}

// sumRows reads lines of a number and a body; the last line is the total.
func sumRows(lines []string) (r probe.Rows, err error) {
	if len(lines) == 0 {
		return r, errors.New("rows: SQLite says nothing")
	}
	for _, line := range lines[:len(lines)-1] {
		number, body, _ := strings.Cut(line, " ")
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return r, fmt.Errorf("rows: %w", err)
		}
		r = probe.Rows{Count: r.Count + 1, Max: n, Sum: probe.FoldRow(r.Sum, n, body)}
	}
	if r.Total, err = strconv.ParseUint(lines[len(lines)-1], 10, 64); err != nil {
		return r, fmt.Errorf("rows: total: %w", err)
	}
	return r, nil
}

// integrity returns ok or what is wrong. A file that is damaged enough is a complaint instead.
func (d *dataDisk) integrity() (string, error) {
	d.forget()
	answer, err := d.sql("PRAGMA integrity_check;")
	var why complaint
	if errors.As(err, &why) {
		return string(why), nil
	}
	return answer, err
}

// sql carries out a statement.
func (d *dataDisk) sql(statement string) (string, error) {
	db, err := d.openDB()
	if err != nil {
		return "", err
	}
	lines, err := db.do(statement)
	return strings.Join(lines, "; "), err
}

// forget takes the database out of all caches, as far as the disk holds it, so that what is read next comes from
// there. SQLite is killed: on its way out it would write, and so mend, what it has in its log.
func (d *dataDisk) forget() {
	d.closeDB()
	for _, name := range []string{database, database + "-wal", database + "-journal"} {
		f, err := os.Open(name)
		if err != nil {
			continue // there is none
		}
		unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		f.Close()
	}
}

func (d *dataDisk) openDB() (*sqlite, error) {
	if d.db != nil {
		return d.db, nil
	}
	if !d.mounted {
		return nil, fmt.Errorf("%s is not mounted", disk)
	}
	db, err := startSQLite(toolsDir+"/bin/sqlite3", database)
	if err != nil {
		return nil, err
	}
	if _, err := db.do(schema); err != nil {
		db.kill()
		return nil, err
	}
	d.db = db
	return db, nil
}

func (d *dataDisk) closeDB() {
	if d.db != nil {
		d.db.kill()
		d.db = nil
	}
}

// A sqlite is Debian's sqlite3 program, fed line by line.
type sqlite struct {
	cmd        *exec.Cmd
	in         io.WriteCloser
	out        *bufio.Scanner
	complaints *os.File // its standard error, which is there by the time that it answers
	asked      int
}

func startSQLite(program, file string) (*sqlite, error) {
	s := &sqlite{cmd: exec.Command(program, "-batch", "-init", "/dev/null", file)}
	var err error
	if s.complaints, err = os.CreateTemp("", "sqlite"); err != nil {
		return nil, err
	}
	os.Remove(s.complaints.Name())
	s.cmd.Stderr = s.complaints
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		s.in, err = s.cmd.StdinPipe()
	}
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		s.complaints.Close()
		return nil, fmt.Errorf("sqlite3: %w", err)
	}
	s.out = bufio.NewScanner(out)
	return s, nil
}

// A complaint is what SQLite says when it can't carry out a statement.
type complaint string

func (c complaint) Error() string { return "sqlite3: " + string(c) }

// do feeds statements and returns the lines printed, or the first complaint.
func (s *sqlite) do(statements string) ([]string, error) {
	s.asked++
	end := fmt.Sprint("answered ", s.asked)
	if _, err := fmt.Fprintf(s.in, "%s\n.print %s\n", statements, end); err != nil {
		return nil, fmt.Errorf("sqlite3: %w: %s", err, s.complained())
	}
	var lines []string
	for s.out.Scan() {
		if s.out.Text() != end {
			lines = append(lines, s.out.Text())
			continue
		}
		if why := s.complained(); why != "" {
			return nil, complaint(why)
		}
		return lines, nil
	}
	return nil, fmt.Errorf("sqlite3: it has ended: %w: %s", errors.Join(s.out.Err(), io.EOF), s.complained())
}

// complained returns the first line of what came on standard error since the last call.
func (s *sqlite) complained() string {
	var text [1024]byte
	n, _ := s.complaints.ReadAt(text[:], 0)
	s.complaints.Truncate(0)
	s.complaints.Seek(0, io.SeekStart) // the program writes where this offset is: both have the same file open
	first, _, _ := strings.Cut(string(text[:n]), "\n")
	return first
}

func (s *sqlite) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait() // an end by signal is what was asked for
	s.complaints.Close()
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"xlft/tests/lab/probe"
)

// fioFlags come before a client's arguments. One process with a thread per job tells in one place how far it has come.
var fioFlags = []string{"--output-format=json", "--thread", "--verify_state_save=0"}

var errNoFio = errors.New("fio: none was started")

// A fio runs fio, one at a time.
type fio struct {
	mu     sync.Mutex
	cmd    *exec.Cmd
	over   chan struct{} // closed when it has ended; nil: none was started
	result probe.FioResult
}

func (f *fio) start(args []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over != nil && !closed(f.over) {
		return errors.New("fio: one is running")
	}
	cmd := exec.Command(toolsDir+"/bin/fio", append(fioFlags[:len(fioFlags):len(fioFlags)], args...)...)
	cmd.Dir = probe.DataDir
	stdout, stderr := &limited{most: 1 << 20}, &limited{most: 4 << 10}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("fio: %w", err)
	}
	f.cmd, f.over = cmd, make(chan struct{})
	go func(over chan struct{}) {
		cmd.Wait() // ProcessState has how it ended
		f.mu.Lock()
		f.result = fioResult(cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.Bytes())
		f.mu.Unlock()
		close(over)
	}(f.over)
	return nil
}

func (f *fio) status() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over == nil {
		return "", errNoFio
	}
	if closed(f.over) {
		return fmt.Sprint("ended ", f.result.Read, " ", f.result.Written), nil
	}
	io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", f.cmd.Process.Pid))
	if err != nil {
		return "", fmt.Errorf("fio: %w", err)
	}
	var read, written uint64
	for line := range strings.Lines(string(io)) {
		// Those of other names don't match, and leave the numbers alone.
		fmt.Sscanf(line, "read_bytes: %d", &read)
		fmt.Sscanf(line, "write_bytes: %d", &written)
	}
	return fmt.Sprint("running ", read, " ", written), nil
}

func (f *fio) wait() (string, error) {
	f.mu.Lock()
	over := f.over
	f.mu.Unlock()
	if over == nil {
		return "", errNoFio
	}
	<-over
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.result
	return strings.TrimSpace(fmt.Sprint(r.Status, " ", r.Code, " ", r.Errors, " ", r.Read, " ", r.Written, " ", r.Complaint)), nil
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// fioResult sums up the jobs that fio reports.
func fioResult(status int, stdout, stderr []byte) probe.FioResult {
	r := probe.FioResult{Status: status}
	complaint, _, _ := bytes.Cut(bytes.TrimSpace(stderr), []byte("\n"))
	r.Complaint = string(bytes.TrimSpace(complaint))
	var report struct {
		Jobs []struct {
			Error    int
			TotalErr int `json:"total_err"`
			Read     struct {
				Bytes uint64 `json:"io_bytes"`
			}
			Write struct {
				Bytes uint64 `json:"io_bytes"`
			}
		}
	}
	// Messages may come before the report.
	if err := json.Unmarshal(stdout[max(bytes.IndexByte(stdout, '{'), 0):], &report); err != nil {
		if r.Status == 0 {
			r.Status = -1 // it must not pass for a run without errors
		}
		if r.Complaint == "" {
			r.Complaint = "no report: " + err.Error()
		}
		return r
	}
	for _, job := range report.Jobs {
		if r.Code == 0 {
			r.Code = job.Error
		}
		r.Errors += job.TotalErr
		r.Read += job.Read.Bytes
		r.Written += job.Write.Bytes
	}
	return r
}

// A limited buffer keeps the first bytes of what is written to it, so that a program can't fill the guest's memory.
type limited struct {
	bytes.Buffer
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:max(0, min(len(p), l.most-l.Len()))])
	return len(p), nil
}

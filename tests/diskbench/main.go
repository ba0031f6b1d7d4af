//go:build linux

// Diskbench measures the disk server beside others that serve the same file: fio's nbd engine, one connection on a unix
// socket, all in one run and in turns, and prints a table of medians and ratios. With "xlft, protected" every write
// also goes to a second process, over TLS on the loopback, by epochs. With "qemu mirror" QEMU does the same in its own
// way: each write is answered when the second process has it, over TLS too.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"xlft/diskrepl"
	"xlft/diskrepl/blockfile"
	"xlft/diskrepl/nbd"
	"xlft/xlft/wire"
)

var (
	rounds  = flag.Int("rounds", 3, "how many turns each server has")
	seconds = flag.Float64("seconds", 3, "how long each measurement is")
	dir     = flag.String("dir", os.TempDir(), "where the disks are")
	direct  = flag.Bool("direct", false, "pass the page cache by (O_DIRECT); the backup's disk is in memory then, so that the two do not share one")
	only    = flag.String("only", "", "servers whose name has this alone")
)

const (
	diskSize = 512 << 20
	epoch    = 100 * time.Millisecond
	mirror   = "qemu mirror"
	journal  = 256 << 20
)

// A contender serves a file on a socket.
type contender struct {
	name string
	argv func(socket, file, spare string) []string
}

func contenders(self string) []contender {
	cache, us := "writeback", []string{self}
	if *direct {
		cache, us = "none", append(us, "-direct")
	}
	cs := []contender{
		{"qemu-nbd", func(s, f, _ string) []string {
			return []string{"qemu-nbd", "-f", "raw", "-k", s, "-x", "disk", "-t", "-e", "8", "--cache=" + cache, f}
		}},
		{"nbdkit file", func(s, f, _ string) []string {
			return []string{"nbdkit", "-f", "-U", s, "-e", "disk", "file", f}
		}},
		{mirror, func(s, f, spare string) []string { return []string{self, "qemu-mirror", s, f, spare, cache} }},
		{"xlft", func(s, f, _ string) []string { return append(us, "serve", s, f) }},
		{"xlft, protected", func(s, f, spare string) []string { return append(us, "serve", s, f, spare) }},
	}
	if *direct { // nbdkit can't
		cs = slices.Delete(cs, 1, 2)
	}
	return cs
}

var jobs = []struct {
	name, rw, bs string
	depth        int
}{
	{"4k random write", "randwrite", "4k", 32},
	{"4k random read", "randread", "4k", 32},
	{"1M write", "write", "1m", 4},
	{"1M read", "read", "1m", 4},
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("diskbench: ")
	flag.Parse()
	var err error
	switch args := flag.Args(); {
	case len(args) >= 3 && args[0] == "serve":
		err = serve(args[1], args[2], args[3:])
	case len(args) == 5 && args[0] == "qemu-mirror":
		err = qemuMirror(args[1], args[2], args[3], args[4] == "none")
	case len(args) == 2 && args[0] == "backup":
		err = backup(args[1])
	default:
		err = bench()
	}
	if err != nil {
		log.Fatal(err)
	}
}

// A figure is the result of one measurement.
type figure struct {
	mbs float64 // MB/s
	cpu float64 // server's processor seconds per GiB
}

func bench() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, tool := range []string{"fio", "qemu-nbd", "qemu-storage-daemon", "nbdkit"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: make setup installs it", err)
		}
	}
	work, err := os.MkdirTemp(*dir, "diskbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	file, spare := filepath.Join(work, "disk"), filepath.Join(work, "spare")
	if *direct {
		other, err := os.MkdirTemp("/dev/shm", "diskbench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(other)
		spare = filepath.Join(other, "spare")
	}
	for _, f := range []string{file, spare} {
		if err := fill(f); err != nil {
			return err
		}
	}
	all := map[string]map[string][]figure{}
	cs := slices.DeleteFunc(contenders(self), func(c contender) bool { return !strings.Contains(c.name, *only) })
	for round := range *rounds {
		for _, c := range cs {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, *rounds, c.name)
			if all[c.name] == nil {
				all[c.name] = map[string][]figure{}
			}
			if err := c.measure(work, file, spare, all[c.name]); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	print(cs, all)
	return nil
}

// fill writes a file whole, so that no measurement has to allocate blocks.
func fill(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b := bytes.Repeat([]byte{0xa5}, 1<<20)
	for range diskSize >> 20 {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return f.Sync()
}

func (c contender) measure(work, file, spare string, into map[string][]figure) error {
	socket := filepath.Join(work, "socket")
	os.Remove(socket)
	os.Remove(socket + ".pid")
	argv := c.argv(socket, file, spare)
	cmd := command(os.Stderr, argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}()
	if err := listens("unix", socket); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	if b, err := os.ReadFile(socket + ".pid"); err == nil { // the server is a child
		if pid, err = strconv.Atoi(string(b)); err != nil {
			return err
		}
	}
	for _, j := range jobs {
		before, err := cpuTime(pid)
		if err != nil {
			return err
		}
		out, err := exec.Command("fio", "--name=j", "--ioengine=nbd", "--uri=nbd+unix:///disk?socket="+socket, "--rw="+j.rw, "--bs="+j.bs,
			fmt.Sprint("--iodepth=", j.depth), fmt.Sprint("--runtime=", *seconds), "--time_based", fmt.Sprint("--size=", diskSize),
			"--randrepeat=1", "--norandommap", "--output-format=json").Output()
		if err != nil {
			return fmt.Errorf("fio %s: %w", j.name, err)
		}
		after, err := cpuTime(pid)
		if err != nil {
			return err
		}
		bytes, took, err := read(out)
		if err != nil {
			return err
		}
		into[j.name] = append(into[j.name], figure{float64(bytes) / took.Seconds() / 1e6,
			(after - before).Seconds() / (float64(bytes) / (1 << 30))})
	}
	return nil
}

// read reads fio's JSON: bytes moved, and the time it took.
func read(out []byte) (int64, time.Duration, error) {
	type side struct {
		Bytes   int64 `json:"io_bytes"`
		Runtime int64 `json:"runtime"` // ms
	}
	var r struct {
		Jobs []struct {
			Read  side `json:"read"`
			Write side `json:"write"`
			Error int  `json:"error"`
		} `json:"jobs"`
	}
	i := bytes.IndexByte(out, '{') // fio may say something first
	if i < 0 {
		return 0, 0, fmt.Errorf("fio said %q", out)
	}
	if err := json.Unmarshal(out[i:], &r); err != nil {
		return 0, 0, fmt.Errorf("fio: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return 0, 0, errors.New("fio: its job failed")
	}
	s := r.Jobs[0].Read
	if r.Jobs[0].Write.Bytes > 0 {
		s = r.Jobs[0].Write
	}
	return s.Bytes, time.Duration(s.Runtime) * time.Millisecond, nil
}

// command is a program that ends with this one.
func command(stderr io.Writer, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// listens waits until a server listens.
func listens(network, address string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// cpuTime is what a process and its children that have ended have used. The backup is a child that has not: it is
// another host's processor.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * time.Second / 100, nil // USER_HZ
}

func print(cs []contender, all map[string]map[string][]figure) {
	median := func(fs []figure, of func(figure) float64) float64 {
		var v []float64
		for _, f := range fs {
			v = append(v, of(f))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	mbs := func(c, j string) float64 { return median(all[c][j], func(f figure) float64 { return f.mbs }) }
	what := "disk server, MB/s"
	if *direct {
		what = "O_DIRECT, MB/s"
	}
	fmt.Printf("%-18s", what)
	for _, j := range jobs {
		fmt.Printf(" %18s", j.name)
	}
	fmt.Println()
	for _, c := range cs {
		fmt.Printf("%-18s", c.name)
		for _, j := range jobs {
			fmt.Printf(" %18.0f", mbs(c.name, j.name))
		}
		fmt.Printf("\n%-18s", "  CPU s/GiB")
		for _, j := range jobs {
			fmt.Printf(" %18.2f", median(all[c.name][j.name], func(f figure) float64 { return f.cpu }))
		}
		fmt.Println()
	}
	if *only != "" {
		return
	}
	ratio := func(name string, of func(j string) float64) {
		fmt.Printf("%-18s", name)
		for _, j := range jobs {
			fmt.Printf(" %18.2f", of(j.name))
		}
		fmt.Println()
	}
	ratio("xlft / the better", func(j string) float64 {
		best := 0.0
		for _, c := range cs {
			if !strings.HasPrefix(c.name, "xlft") && c.name != mirror {
				best = max(best, mbs(c.name, j))
			}
		}
		return mbs("xlft", j) / best
	})
	ratio("protected / xlft", func(j string) float64 { return mbs("xlft, protected", j) / mbs("xlft", j) })
	ratio("mirror / qemu-nbd", func(j string) float64 { return mbs(mirror, j) / mbs("qemu-nbd", j) })
	ratio("protected / mirror", func(j string) float64 { return mbs("xlft, protected", j) / mbs(mirror, j) })
}

// serve serves a file; with a spare file it replicates to a process that has that.
func serve(socket, file string, spare []string) error {
	f, err := blockfile.Open(file, *direct)
	if err != nil {
		return err
	}
	defer f.Close()
	m := diskrepl.NewMirror(f)
	if len(spare) > 0 {
		stop, err := protect(m, spare[0])
		if err != nil {
			return err
		}
		defer stop()
	}
	var s nbd.Server
	if err := s.Add(&nbd.Export{Name: "disk", Device: m}); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return s.Serve(context.Background(), l)
}

// protect starts the backup and seals epochs.
func protect(m *diskrepl.Mirror, spare string) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := command(os.Stderr, self, "backup", spare)
	said, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var address, fingerprint string
	if _, err := fmt.Fscanln(said, &address, &fingerprint); err != nil {
		return nil, err
	}
	peer, err := wire.ParseFingerprint(fingerprint)
	if err != nil {
		return nil, err
	}
	id, err := identity()
	if err != nil {
		return nil, err
	}
	dial := id.Dialer([]string{address}, peer)
	data, err := dial(context.Background())
	if err != nil {
		return nil, err
	}
	acks, err := dial(context.Background())
	if err != nil {
		return nil, err
	}
	if _, err := acks.Write([]byte{0}); err != nil {
		return nil, err
	}
	link, err := m.Attach(data, diskrepl.Options{Limit: journal, Lost: func(err error) { log.Fatal(err) }})
	if err != nil {
		return nil, err
	}
	if err := link.AwaitSync(); err != nil {
		return nil, err
	}
	go func() {
		var b [8]byte
		for e := uint64(1); ; e++ {
			if err := link.Seal(e); err != nil {
				log.Fatal(err)
			}
			if _, err := io.ReadFull(acks, b[:]); err != nil {
				log.Fatal(err)
			}
			link.Release(binary.BigEndian.Uint64(b[:]))
			time.Sleep(epoch)
		}
	}()
	return func() { cmd.Process.Kill() }, nil
}

func identity() (*wire.Identity, error) {
	dir, err := os.MkdirTemp("", "diskbench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if _, err := wire.GenerateIdentity(filepath.Join(dir, "id"), "bench", false); err != nil {
		return nil, err
	}
	return wire.LoadIdentity(filepath.Join(dir, "id"))
}

// backup holds a file as a replica, and acks every epoch.
func backup(file string) error {
	f, err := blockfile.Open(file, false)
	if err != nil {
		return err
	}
	id, err := identity()
	if err != nil {
		return err
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l := wire.NewListener(inner, id.TLSConfig(func(wire.Fingerprint) bool { return true }))
	fmt.Println(l.Addr(), id.Fingerprint)
	data, err := l.Accept()
	if err != nil {
		return err
	}
	r := diskrepl.NewReplica(f, data)
	go func() { log.Fatal(r.Run()) }()
	acks, err := l.Accept()
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(acks, make([]byte, 1)); err != nil {
		return err
	}
	for e := uint64(1); ; e++ {
		if err := r.AwaitSealed(context.Background(), e); err != nil {
			return err
		}
		if _, err := acks.Write(binary.BigEndian.AppendUint64(nil, e)); err != nil {
			return err
		}
		if err := r.Commit(e); err != nil {
			return err
		}
	}
}

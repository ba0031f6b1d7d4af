//go:build lab

package scenario

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xlft/savestream"
	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// netbuffer's own tests in a dom0, with the kernel's real plug.
func TestNetbufferInDom0(t *testing.T) {
	fx := unprotected(t)
	fx.inDom0(fx.backup(), "netbuffer")
}

// inDom0 runs a package's tests for the lab on a host.
func (fx *fixture) inDom0(h *lab.Host, pkg string) {
	t := fx.t
	t.Helper()
	tree, err := ft.Tree()
	check(t, err)
	name := path.Base(pkg) + ".test"
	binary := filepath.Join(t.TempDir(), name)
	build := exec.CommandContext(within(t, patience), "go", "test", "-c", "-tags", "lab", "-o", binary, "./"+pkg)
	build.Dir = tree
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if path.Base(pkg) == "xen" { // Xen's libraries
		build.Args = slices.Replace(build.Args, 4, 5, "lab,xen")
		build.Env = os.Environ()
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	check(t, h.Copy(within(t, soon), binary, "/root/"+name, 0o755))
	out, err := h.Run(within(t, patience), "/root/"+name, "-test.run", "Lab", "-test.v")
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "=== ") {
			t.Log(strings.TrimRight(line, "\n"))
		}
	}
	check(t, err)
}

const (
	image    = "/root/web1.save"
	verifier = "PYTHONPATH=/usr/lib/xen-4.17/lib/python /usr/lib/xen-4.17/bin/verify-stream-v2" // Debian leaves the path to us
)

// Streams: we read what "xl save" wrote, from a file and from a pipe, and Xen's own checker accepts what we build.
func TestStreams(t *testing.T) {
	fx := unprotected(t)
	h := fx.home
	h.Must(t, "xl", "save", "-c", fx.guest.Name, image)
	file := h.Must(t, "xlft", "inspect", image)
	pipe := h.Must(t, "sh", "-c", "cat "+image+" | xlft inspect -")
	lines := strings.Split(strings.TrimSpace(file), "\n")
	t.Logf("xlft inspect of an xl save image: %d lines, the first and the last:\n%s\n...\n%s",
		len(lines), strings.Join(lines[:min(12, len(lines))], "\n"), strings.Join(lines[max(0, len(lines)-6):], "\n"))
	if file != pipe {
		t.Error("xlft inspect says other things of a pipe")
	}
	check(t, h.WriteFile(within(t, soon), "/root/cut.save", nil, 0o600))
	h.Must(t, "sh", "-c", "head -c 100000 "+image+" > /root/cut.save")
	fx.refused(h, "unexpected EOF", "xlft", "inspect", "/root/cut.save")

	fx.verifies("xl", image)
	body, err := h.ReadFile(within(t, patience), image)
	check(t, err)
	parts, err := take(body)
	check(t, err)
	for _, built := range []struct {
		name, format string
		stream       func() ([]byte, error)
		known        bool // Xen's checker knows such streams
	}{
		{"checkpointed libxc stream", "libxc", parts.checkpointed, true},
		{"libxl stream", "libxl", parts.plain, true},
		{"feed of a restore, ended", "libxl", parts.feed, false}, // its checker looks for no libxl record inside libxc's
	} {
		stream, err := built.stream()
		check(t, err)
		path := "/root/built.stream"
		check(t, h.WriteFile(within(t, soon), path, stream, 0o600))
		t.Logf("%s, %d bytes; xlft inspect: %s", built.name, len(stream), lastLine(h.Must(t, "xlft", "inspect", path)))
		if built.known {
			fx.verifies(built.format, path)
		}
	}
}

// verifies runs Xen's own checker of streams.
func (fx *fixture) verifies(format, path string) {
	fx.t.Helper()
	out, err := fx.home.Run(within(fx.t, patience), "sh", "-c", verifier+" -v -f "+format+" -i "+path+" 2>&1")
	fx.t.Logf("verify-stream-v2 -f %s %s: %v; its last line: %s", format, path, err, lastLine(out))
	if err != nil {
		fx.t.Error(out)
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// records are those of an xl save image, few of its pages, from which streams are built.
type records struct {
	header savestream.Header
	static []savestream.Record // what opens a stream
	epoch  []savestream.Record // pages and vCPU
}

// take reads an xl save image.
func take(image []byte) (*records, error) {
	const batches = 2
	r := bytes.NewReader(image)
	if _, err := savestream.ReadSaveHeader(r); err != nil {
		return nil, err
	}
	in := savestream.NewLibxlDecoder(r)
	parts := new(records)
	for pages := 0; ; {
		item, err := in.Next()
		if errors.Is(err, io.EOF) {
			parts.header = in.Libxc()
			return parts, nil
		}
		if err != nil {
			return nil, err
		}
		if item.Libxc == nil || item.Libxc.Type == savestream.End {
			continue
		}
		rec := *item.Libxc
		rec.Body = bytes.Clone(rec.Body)
		if rec.Type == savestream.PageDataType {
			pages++
		}
		switch {
		case pages == 0:
			parts.static = append(parts.static, rec)
		case rec.Type != savestream.PageDataType || pages <= batches:
			parts.epoch = append(parts.epoch, rec)
		}
	}
}

// build writes so many epochs of libxc's records, each with a checkpoint if asked and then the bytes after, between the
// bytes before and behind.
func (p *records) build(before []byte, epochs int, checkpoints bool, after, behind []byte) ([]byte, error) {
	out := bytes.NewBuffer(bytes.Clone(before))
	e := savestream.NewEncoder(out, p.header)
	recs := append([]savestream.Record{}, p.static...)
	for range epochs {
		recs = append(recs, p.epoch...)
		if checkpoints {
			recs = append(recs, savestream.Record{Type: savestream.Checkpoint})
		}
		for _, rec := range recs {
			if err := e.Encode(rec); err != nil {
				return nil, err
			}
		}
		out.Write(after)
		recs = recs[:0]
	}
	out.Write(behind)
	return out.Bytes(), nil
}

func (p *records) checkpointed() ([]byte, error) {
	return p.build(nil, 2, true, nil, savestream.EndRecord())
}

func (p *records) plain() ([]byte, error) {
	head := append(savestream.LibxlHeader(), savestream.LibxcContextRecord()...)
	return p.build(head, 1, false, nil, append(savestream.EndRecord(), savestream.LibxlEndRecord()...))
}

func (p *records) feed() ([]byte, error) {
	head := append(savestream.LibxlHeader(), savestream.LibxcContextRecord()...)
	return p.build(head, 2, true, savestream.CheckpointEndRecord(), append(savestream.EndRecord(), savestream.LibxlEndRecord()...))
}

//go:build lab

package scenario

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xlft/savestream"
	"xlft/tests/lab/ft"
)

// netbuffer's own tests in a dom0, with the kernel's real plug.
func TestNetbufferInDom0(t *testing.T) {
	w := unprotected(t)
	tree, err := ft.Tree()
	check(t, err)
	binary := filepath.Join(t.TempDir(), "netbuffer.test")
	build := exec.CommandContext(within(t, patience), "go", "test", "-c", "-tags", "lab", "-o", binary, "./netbuffer")
	build.Dir = tree
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := w.backup()
	check(t, h.Copy(within(t, soon), binary, "/root/netbuffer.test", 0o755))
	out, err := h.Run(within(t, patience), "/root/netbuffer.test", "-test.run", "Lab", "-test.v")
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "=== ") {
			t.Log(strings.TrimRight(line, "\n"))
		}
	}
	check(t, err)
}

const (
	image    = "/root/web1.save"
	verifier = "/usr/lib/xen-4.17/bin/verify-stream-v2"
)

// Streams: what "xl save" wrote is read, from a file and from a pipe, and what we build Xen's own checker accepts.
func TestStreams(t *testing.T) {
	w := unprotected(t)
	h := w.home
	h.Must(t, "xl", "save", "-c", w.guest.Name, image)
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
	w.refused(h, "unexpected EOF", "xlft", "inspect", "/root/cut.save")

	t.Log(strings.TrimSpace(h.Must(t, "sh", "-c", verifier+" -x -i "+image+" 2>&1")))
	body, err := h.ReadFile(within(t, patience), image)
	check(t, err)
	for _, ending := range []struct {
		name string
		end  []byte
	}{
		{"ended", append(savestream.EndRecord(), savestream.LibxlEndRecord()...)},
		{"checkpoint", nil},
	} {
		feed, err := checkpointed(body)
		check(t, err)
		path := "/root/" + ending.name + ".stream"
		check(t, h.WriteFile(within(t, soon), path, append(feed, ending.end...), 0o600))
		out, err := h.Run(within(t, patience), "sh", "-c", verifier+" -i "+path+" 2>&1")
		t.Logf("verify-stream-v2 of a feed of two checkpoints, %s, %d bytes: %v %s", ending.name, len(feed)+len(ending.end), err, lastLine(out))
		if ending.end != nil && err != nil {
			t.Error(out)
		}
		out = h.Must(t, "xlft", "inspect", path)
		t.Logf("xlft inspect of it: %s", lastLine(out))
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// checkpointed builds the stream that a backup feeds to libxl: the libxl framing around libxc's records with a
// checkpoint after them, here twice. The records are those of an xl save image, few of its pages.
func checkpointed(image []byte) ([]byte, error) {
	r := bytes.NewReader(image)
	if _, err := savestream.ReadSaveHeader(r); err != nil {
		return nil, err
	}
	in := savestream.NewLibxlDecoder(r)
	var head, rest []savestream.Record // what opens a stream, and what each checkpoint has
	pages := 0
	for {
		item, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if item.Libxc == nil {
			continue
		}
		rec := *item.Libxc
		rec.Body = bytes.Clone(rec.Body)
		switch rec.Type {
		case savestream.End:
		case savestream.PageDataType:
			if pages++; pages <= 2 {
				rest = append(rest, rec)
			}
		default:
			if pages == 0 {
				head = append(head, rec)
			} else {
				rest = append(rest, rec)
			}
		}
	}
	var out bytes.Buffer
	out.Write(savestream.LibxlHeader())
	out.Write(savestream.LibxcContextRecord())
	e := savestream.NewEncoder(&out, in.Libxc())
	for _, recs := range [][]savestream.Record{append(head, rest...), rest} {
		for _, rec := range append(recs, savestream.Record{Type: savestream.Checkpoint}) {
			if err := e.Encode(rec); err != nil {
				return nil, err
			}
		}
		out.Write(savestream.CheckpointEndRecord())
	}
	return out.Bytes(), nil
}

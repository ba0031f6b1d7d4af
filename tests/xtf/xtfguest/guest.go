//go:build linux

// Package xtfguest builds the C guests of tests/xtf, runs them on the lab's hosts and asks them what they know.
//
// The one rule: a guest is asked by xenstore on the host that runs it, under a domain id that changes with each
// restore. So a [Domain] is of one host and one life; after a takeover, [Find] it again.
package xtfguest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"xlft/tests/lab"
)

// A Guest describes a domain that runs one of the tests.
type Guest struct {
	Name    string
	Test    string   // a directory of tests/xtf/tests
	Memory  int      // MiB; 0: as the test says, which is as little as it needs
	Options []string // words for the command line; each test's main.c has them
	Config  string   // more lines for xl
}

// hostDir is where hosts have the guests' images.
const hostDir = "/var/lib/xlft-xtf"

// Image is the guest's image on a host.
func (g Guest) Image() string { return hostDir + "/test-pvh64-" + g.Test }

// ConfigPath is the guest's configuration on a host.
func (g Guest) ConfigPath() string { return "/etc/xen/" + g.Name + ".cfg" }

// built is done once a process; make knows what is out of date.
var built struct {
	sync.Mutex
	dir string
}

// Build builds all guests and returns where they are on this machine.
func Build(ctx context.Context) (dir string, err error) {
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		return built.dir, nil
	}
	tree, err := tree()
	if err != nil {
		return "", err
	}
	mk := exec.CommandContext(ctx, "make", "-s", "-C", filepath.Join(tree, "tests", "xtf"))
	if out, err := mk.CombinedOutput(); err != nil {
		return "", fmt.Errorf("xtfguest: make: %w\n%s", err, out)
	}
	built.dir = filepath.Join(tree, "build", "xtf")
	return built.dir, nil
}

// tree is the top of the source tree that this process was started in.
func tree() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("xtfguest: find the source tree: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// Render turns the configuration that make built into this guest's.
func (g Guest) Render(built string) string {
	var b strings.Builder
	for line := range strings.Lines(built) {
		switch key, _, _ := strings.Cut(line, " "); {
		case key == "name", key == "kernel", key == "memory" && g.Memory != 0:
		default:
			b.WriteString(line)
		}
	}
	fmt.Fprintf(&b, "name = %q\n", g.Name)
	fmt.Fprintf(&b, "kernel = %q\n", g.Image())
	fmt.Fprintf(&b, "extra = %q\n", strings.Join(g.Options, " "))
	if g.Memory != 0 {
		fmt.Fprintf(&b, "memory = %d\n", g.Memory)
	}
	b.WriteString(g.Config)
	return b.String()
}

// Create builds the guest and starts it on a host.
func (g Guest) Create(ctx context.Context, h *lab.Host) (*Domain, error) {
	dir, err := Build(ctx)
	if err != nil {
		return nil, err
	}
	image := filepath.Join(dir, "test-pvh64-"+g.Test)
	if err := h.Copy(ctx, image, g.Image(), 0o644); err != nil {
		return nil, err
	}
	conf, err := os.ReadFile(image + ".cfg")
	if err != nil {
		return nil, fmt.Errorf("xtfguest: %w", err)
	}
	if err := h.WriteFile(ctx, g.ConfigPath(), []byte(g.Render(string(conf))), 0o644); err != nil {
		return nil, err
	}
	if _, err := h.Run(ctx, "xl", "create", g.ConfigPath()); err != nil {
		return nil, err
	}
	return Find(ctx, h, g.Name)
}

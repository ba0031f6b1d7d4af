//go:build linux

// Labctl runs the lab by hand: see [lab]. It needs root.
//
//	labctl prepare            install what is missing, build images and snapshots
//	labctl up                 start both hosts and keep them up until Ctrl-C
//	labctl run A|B COMMAND…   run a command on a host of the lab that is up
//	labctl cp FILE A|B:PATH   copy a file to a host, or
//	labctl cp A|B:PATH FILE   from one
//	labctl cut A|B            pull a host's LAN cable
//	labctl mend A|B           plug it in again
//	labctl world COMMAND…     run a command where the test process is on the LAN
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"xlft/tests/lab"
)

const usage = `usage: labctl prepare
       labctl up
       labctl run A|B COMMAND...
       labctl cp FILE A|B:PATH
       labctl cp A|B:PATH FILE
       labctl cut A|B
       labctl mend A|B
       labctl world COMMAND...`

var errUsage = errors.New("labctl: bad arguments")

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := labctl(ctx, os.Args[1:])
	var command *lab.CommandError
	var exit *exec.ExitError
	switch {
	case errors.Is(err, errUsage):
		log.Fatal(usage)
	case errors.As(err, &command) && command.Status.Code > 0:
		os.Exit(command.Status.Code)
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode())
	case err != nil:
		log.Fatal(err)
	}
}

func labctl(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	switch {
	case verb == "prepare" && len(args) == 0:
		return lab.Prepare(ctx, log.Printf)
	case verb == "up" && len(args) == 0:
		return up(ctx)
	}
	l, err := lab.Attach()
	if err != nil {
		return err
	}
	switch {
	case verb == "run" && len(args) >= 2:
		h, err := host(l, args[0])
		if err != nil {
			return err
		}
		return h.Stream(ctx, os.Stdin, os.Stdout, os.Stderr, args[1:]...)
	case verb == "cp" && len(args) == 2:
		return cp(ctx, l, args[0], args[1])
	case verb == "cut" && len(args) == 1, verb == "mend" && len(args) == 1:
		h, err := host(l, args[0])
		if err != nil {
			return err
		}
		if verb == "cut" {
			return h.CutLAN()
		}
		return h.RestoreLAN()
	case verb == "world" && len(args) >= 1:
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := l.Exec(cmd); err != nil {
			return err
		}
		return cmd.Wait()
	}
	return errUsage
}

// up keeps the lab until ctx ends.
func up(ctx context.Context) error {
	l, err := lab.Open(ctx, log.Printf)
	if err != nil {
		return err
	}
	if err := l.Reset(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	namespace, err := l.Publish()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	for _, h := range l.Hosts() {
		fmt.Printf("host %s: %v, %v, console %s\n", h.Name(), h.IPv4(), h.IPv6(), h.Console())
	}
	fmt.Printf(`in another shell:
  labctl run A xl list
  labctl run A xl create %s/linux.cfg
  labctl world ping 10.20.0.10    (or nsenter --net=%s)
Ctrl-C takes the lab down
`, lab.GuestDir, namespace)
	<-ctx.Done()
	return l.Close()
}

func host(l *lab.Lab, name string) (*lab.Host, error) {
	for _, h := range l.Hosts() {
		if strings.EqualFold(h.Name(), name) {
			return h, nil
		}
	}
	return nil, fmt.Errorf("no host %q: they are A and B", name)
}

func cp(ctx context.Context, l *lab.Lab, from, to string) error {
	if name, path, ok := strings.Cut(to, ":"); ok && !strings.Contains(name, "/") {
		h, err := host(l, name)
		if err != nil {
			return err
		}
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, "/") {
			path += filepath.Base(from)
		}
		return h.Copy(ctx, from, path, info.Mode())
	}
	name, path, ok := strings.Cut(from, ":")
	if !ok {
		return errUsage
	}
	h, err := host(l, name)
	if err != nil {
		return err
	}
	body, err := h.ReadFile(ctx, path)
	if err != nil {
		return err
	}
	return os.WriteFile(to, body, 0o644)
}

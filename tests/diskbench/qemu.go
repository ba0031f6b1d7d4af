//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// qemuMirror serves a file by QEMU, which writes synchronously to a spare one that another process has, over TLS with a
// shared key.
func qemuMirror(socket, file, spare string, direct bool) error {
	work, err := os.MkdirTemp("", "diskbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	key := make([]byte, 32)
	rand.Read(key)
	if err := os.WriteFile(filepath.Join(work, "keys.psk"), []byte("qemu:"+hex.EncodeToString(key)+"\n"), 0o600); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	creds := "tls-creds-psk,id=tls0,dir=" + work + ",endpoint="
	backup, err := start("qemu-nbd", "--object", creds+"server", "--tls-creds", "tls0", "-f", "raw", "-b", "127.0.0.1", "-p", port,
		"-x", "spare", "-t", spare)
	if err != nil {
		return err
	}
	defer stop(backup)
	if err := listens("tcp", "127.0.0.1:"+port); err != nil {
		return fmt.Errorf("qemu-nbd: %w: %s", err, backup.Stderr)
	}
	monitor, served := filepath.Join(work, "monitor"), filepath.Join(work, "socket")
	server, err := start("qemu-storage-daemon", "--object", creds+"client,username=qemu",
		"--blockdev", fmt.Sprintf("driver=file,node-name=file,filename=%s,cache.direct=%s", file,
			map[bool]string{false: "off", true: "on"}[direct]),
		"--blockdev", "driver=raw,node-name=disk,file=file",
		"--blockdev", "driver=nbd,node-name=spare,server.type=inet,server.host=127.0.0.1,server.port="+port+",export=spare,tls-creds=tls0",
		"--nbd-server", "addr.type=unix,max-connections=8,addr.path="+served,
		"--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on",
		"--chardev", "socket,id=monitor,server=on,wait=off,path="+monitor, "--monitor", "chardev=monitor")
	if err != nil {
		return err
	}
	defer stop(server)
	if err := listens("unix", served); err != nil {
		return fmt.Errorf("qemu-storage-daemon: %w: %s", err, server.Stderr)
	}
	if err := startMirror(monitor); err != nil {
		return err
	}
	if err := os.WriteFile(socket+".pid", fmt.Append(nil, server.Process.Pid), 0o600); err != nil {
		return err
	}
	if err := os.Rename(served, socket); err != nil {
		return err
	}
	over := make(chan os.Signal, 1)
	signal.Notify(over, syscall.SIGTERM)
	<-over
	return nil
}

// start starts a program. Its output is kept and not shown: QEMU complains about connections that end.
func start(name string, args ...string) (*exec.Cmd, error) {
	cmd := command(new(bytes.Buffer), name, args...)
	return cmd, cmd.Start()
}

func stop(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// startMirror begins with two files that are the same; QMP's blockdev-mirror.
func startMirror(monitor string) error {
	c, err := net.Dial("unix", monitor)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewScanner(c)
	r.Scan() // the greeting
	for _, command := range []string{
		`{"execute": "qmp_capabilities"}`,
		`{"execute": "blockdev-mirror", "arguments": {"job-id": "mirror", "device": "disk", "target": "spare", "sync": "none", "copy-mode": "write-blocking"}}`,
	} {
		if _, err := fmt.Fprintln(c, command); err != nil {
			return err
		}
		for {
			if !r.Scan() {
				return errors.Join(errors.New("monitor of qemu-storage-daemon: it ended"), r.Err())
			}
			var answer struct {
				Return *json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := json.Unmarshal(r.Bytes(), &answer); err != nil {
				return err
			}
			if answer.Error != nil {
				return fmt.Errorf("%s: %s", strings.TrimSpace(command), answer.Error.Desc)
			}
			if answer.Return != nil {
				break // all else are events
			}
		}
	}
	return nil
}
